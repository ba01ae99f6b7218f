"""``ppa-fast evaluate TASK``: argument parsing only."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ppa_fast.cli.verb import PAIRS_HELP, Verbs, add_family, add_verb

GOLD_HELP = "a file, or a file for each language (en:FILE de:FILE); .gz too"


def _run(task: str, arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The result of ``task`` with the arguments of those names, written to ``--json`` too."""
    from ppa_fast.data.examples import output_file
    from ppa_fast.evaluation import evaluate
    from ppa_fast.files import write_text

    file = output_file(arguments.json, "--json") if arguments.json else None
    result = evaluate(task, **{name: getattr(arguments, name) for name in names})
    if file:
        write_text(file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def _retrieval(arguments: argparse.Namespace) -> None:
    from ppa_fast.evaluation.retrieval import format_table

    print(format_table(_run("retrieval", arguments, "model", "pairs", "pooling", "layer")))


def _qa(arguments: argparse.Namespace) -> None:
    from ppa_fast.evaluation.question_answering import format_table

    print(format_table(_run("qa", arguments, "gold", "predictions", "model", "language", "metric")))


def _classes(task: str, arguments: argparse.Namespace) -> None:
    from ppa_fast.evaluation.classification import format_table

    print(format_table(_run(task, arguments, "gold", "predictions", "model")))


def _nli(arguments: argparse.Namespace) -> None:
    _classes("nli", arguments)


def _classify(arguments: argparse.Namespace) -> None:
    _classes("classify", arguments)


def _align(arguments: argparse.Namespace) -> None:
    from ppa_fast.evaluation.word_alignment import format_scores

    files = ("gold", "links", "one_indexed", "links_one_indexed")
    print(
        format_scores(_run("align", arguments, *files, "model", "pairs", "layer", "method", "threshold", "links_out"))
    )


def _mine(arguments: argparse.Namespace) -> None:
    from ppa_fast.evaluation.mining import format_scores

    files = ("dev", "test", "gold", "predictions", "mined_out")
    print(format_scores(_run("mine", arguments, *files, "model", "pooling", "layer")))


def _gold(parser: argparse.ArgumentParser, gold: str, predictions: str, model: str) -> None:
    parser.add_argument("--gold", required=True, nargs="+", action="extend", metavar="FILE", help=gold)
    answers = parser.add_mutually_exclusive_group(required=True)
    answers.add_argument("--predictions", nargs="+", action="extend", metavar="FILE", help=predictions)
    answers.add_argument("--model", help=f"name or folder of a fine-tuned model, {model}: it predicts first")


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``evaluate`` and its tasks."""
    tasks = add_family(
        verbs,
        "evaluate",
        "score an encoder or a file of predictions",
        "ppa-fast evaluate retrieval --model aligned-mbert --pairs en-de:test.en,test.de",
    )
    shares = "accuracy and macro_f1, shares between 0 and 1"

    p = add_verb(
        tasks,
        "retrieval",
        "find each sentence's translation by cosine among all sentences of the other side",
        "ppa-fast evaluate retrieval --model DIR --pairs en-de:dev.en,dev.de --json scores.json",
        _retrieval,
    )
    p.add_argument("--model", required=True, help="name or folder of a Hugging Face encoder")
    p.add_argument("--pairs", required=True, nargs="+", action="extend", metavar="SPEC", help=PAIRS_HELP)
    p.add_argument("--pooling", choices=("cls", "mean"), help="(default: what the folder states, else mean)")
    p.add_argument("--layer", type=int, metavar="N", help="layer to take, 0 the embeddings (default: the last)")
    p.add_argument("--json", metavar="FILE", help="write the scores, shares between 0 and 1")

    p = add_verb(
        tasks,
        "qa",
        "exact match and token F1 of extractive question answering, as in MLQA's or SQuAD's official script",
        "ppa-fast evaluate qa --gold test.json --predictions answers.json --language zh --json scores.json",
        _qa,
    )
    _gold(
        p,
        "SQuAD 1.1 JSON: a file, or one a language (en:FILE zh:FILE; zh-en:FILE is a Chinese context with English "
        "questions; MLQA's file names say it themselves)",
        'JSON {"question id": "answer"}: a file for each gold file, named in the same way',
        "AutoModelForQuestionAnswering",
    )
    p.add_argument("--language", metavar="LANG", help="the answers' (the context's) language, for a single gold file")
    p.add_argument(
        "--metric",
        choices=("mlqa", "squad"),
        default="mlqa",
        help="mlqa: articles and segmentation by language; squad: SQuAD 1.1 in every language, as XQuAD (default mlqa)",
    )
    p.add_argument("--json", metavar="FILE", help="write exact_match and f1, times 100, in all and by language")

    p = add_verb(
        tasks,
        "nli",
        "accuracy and macro-F1 of natural language inference, by language and their mean",
        "ppa-fast evaluate nli --gold en:en.tsv de:de.tsv --predictions en:en.txt de:de.txt --json scores.json",
        _nli,
    )
    _gold(
        p,
        f"TSV with a header or JSON lines (XNLI, MultiNLI): {GOLD_HELP}; a column 'language' splits a file by language",
        "a label a line for each row of the gold file: a file for each gold file, named in the same way",
        "AutoModelForSequenceClassification",
    )
    p.add_argument("--json", metavar="FILE", help=f"write {shares}, in all and by language")

    p = add_verb(
        tasks,
        "classify",
        "accuracy and macro-F1 of text classification, by language and their mean",
        "ppa-fast evaluate classify --gold test.tsv --predictions test.txt --json scores.json",
        _classify,
    )
    _gold(
        p,
        f"TSV with the columns text and category or label (SIB-200), or JSON lines: {GOLD_HELP}",
        "a label a line for each row of the gold file: a file for each gold file, named in the same way",
        "AutoModelForSequenceClassification",
    )
    p.add_argument("--json", metavar="FILE", help=f"write {shares}, in all and by language")

    p = add_verb(
        tasks,
        "align",
        "alignment error rate, precision and recall of word links, of a file or of an encoder",
        "ppa-fast evaluate align --gold test.gold --one-indexed --links test.links --json scores.json\n"
        "ppa-fast evaluate align --gold test.gold --model DIR --pairs test.de,test.en --json scores.json",
        _align,
    )
    p.add_argument(
        "--gold",
        required=True,
        metavar="FILE",
        help="gold links, 'i-j' sure and 'ipj' possible, a line a sentence (Pharaoh); or 'sentence i j [S|P]', a line "
        "a link (shared task of 2003), sentences from 1 (from 0 if there is a sentence 0)",
    )
    p.add_argument("--one-indexed", action="store_true", help="words count from 1 in the gold file (default: from 0)")
    links = p.add_mutually_exclusive_group(required=True)
    links.add_argument("--links", metavar="FILE", help="links to score, in either form")
    links.add_argument("--model", help="name or folder of a Hugging Face encoder, to link the words of --pairs")
    p.add_argument(
        "--links-one-indexed",
        action="store_true",
        help="words count from 1 in --links too (default: from 0, as aligners write them, whatever the gold file does)",
    )
    p.add_argument("--pairs", metavar="SRC,TGT", help="line-parallel files of words with white space between them")
    p.add_argument(
        "--layer", type=int, metavar="N", help="layer to take, 0 the embeddings (default: two thirds up, 8 of 12)"
    )
    p.add_argument(
        "--method",
        choices=("mutual", "softmax"),
        default="mutual",
        help="mutual: each other's nearest by cosine (SimAlign); softmax: above --threshold both ways (awesome-align)",
    )
    p.add_argument("--threshold", type=float, default=0.001, metavar="P", help="of --method softmax (default 0.001)")
    p.add_argument("--links-out", metavar="FILE", help="write the model's links, 'i-j' from 0, a line a sentence")
    p.add_argument("--json", metavar="FILE", help="write aer, precision and recall, shares between 0 and 1")

    p = add_verb(
        tasks,
        "mine",
        "find the translations in two monolingual corpora (BUCC): precision, recall and F1",
        "ppa-fast evaluate mine --model DIR --dev dev.de,dev.en,dev.gold --test test.de,test.en,test.gold",
        _mine,
    )
    mined = p.add_mutually_exclusive_group(required=True)
    mined.add_argument("--model", help="name or folder of a Hugging Face encoder, to mine --dev and --test")
    mined.add_argument("--predictions", metavar="FILE", help="mined pairs to score against --gold, id<TAB>id")
    p.add_argument(
        "--dev",
        metavar="SRC,TGT,GOLD",
        help="id<TAB>text twice, and id<TAB>id: what the margin's threshold is tuned on",
    )
    p.add_argument("--test", metavar="SRC,TGT[,GOLD]", help="what the threshold is applied to (default: dev alone)")
    p.add_argument("--gold", metavar="FILE", help="gold pairs, id<TAB>id, for --predictions")
    p.add_argument("--pooling", choices=("cls", "mean"), help="(default: what the folder states, else mean)")
    p.add_argument("--layer", type=int, metavar="N", help="layer to take, 0 the embeddings (default: the last)")
    p.add_argument("--mined-out", metavar="FILE", help="write the mined pairs of the test set, id<TAB>id<TAB>margin")
    p.add_argument("--json", metavar="FILE", help="write precision, recall and f1, shares between 0 and 1")
