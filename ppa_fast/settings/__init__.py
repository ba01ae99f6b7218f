"""The options of each command, declared once in a dataclass. Flags, YAML files and saved settings are views of it."""

from ppa_fast.settings.commands import (
    SPECIALS,
    AblateSettings,
    AlignSettings,
    ExportSettings,
    InitSettings,
    LaunchSettings,
    ReportSettings,
    SampleSettings,
    TokenizerSettings,
)
from ppa_fast.settings.flags import add_arguments, from_arguments, given, to_flags
from ppa_fast.settings.options import Options, option, read_yaml, takes, write_yaml
from ppa_fast.settings.prepare import PAIRS_HELP, Filters, PrepareSettings, ReadOptions
from ppa_fast.settings.tasks import (
    AlignmentSettings,
    AnswersSettings,
    FinetuneSettings,
    LabelsSettings,
    MiningSettings,
    PretrainSettings,
    RetrievalSettings,
    SuiteSettings,
    TagsSettings,
)
from ppa_fast.settings.train import MAX_TOKENS_LIMIT, POOLINGS, RECIPES, Settings, objectives
