"""The text of the sample corpus: templates by topic, slot values, and one :class:`Language` for each language.

To add a language, add one entry to ``LANGUAGES``: a sentence for every template with the same slots as the English
one, a function that spells numbers, and whatever case forms its sentences ask for. Slot values are chosen so that the
grammar stays simple (see the pools below) and so that their names differ between English and every other language in
Latin script: an encoder that has learned nothing must not find translations by shared spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from num2words import num2words


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOPICS: dict[str, tuple[str, ...]] = {
    "travel": ("flight", "train", "ride", "permit", "guesthouse"),
    "weather": ("rain", "snow", "chance", "storm"),
    "shopping": ("coat", "apples", "parcel"),
    "work": ("meeting", "pay", "vacancy"),
    "school": ("course", "class", "book", "exam"),
    "health": ("tablets", "clinic", "walk"),
    "food": ("rice", "inn", "cheese"),
    "sport": ("match", "race", "fans"),
    "news": ("novel", "bridges", "exhibition"),
    "family": ("brother", "wedding"),
}
"""Topic → names of its templates. Every language has exactly these templates."""

# Counted things are never 1, 2 or 6 in the last digit (16 apart), and never below 13 unless a CLDR unit follows: then
# one noun form fits all of them in every language (genitive plural in Russian, accusative singular in Arabic, no
# gender of "one" or "two" in Spanish or French), and French "six" does not meet English "six".
COUNTS = tuple(n for n in range(13, 100) if n <= 20 or n % 10 in (0, 5, 7, 8, 9))
AMOUNTS = (3, 4, 5, 7, 8, 9, 10, *COUNTS)
DAYS = tuple(n for n in range(3, 29) if n % 10 != 6 or n == 16)
MONTHS = (1, 2, 3, 5, 6, 7, 10, 12)  # the others are spelled alike in English and German
CURRENCIES = _words("CZK DKK EGP GBP INR NOK RUB SEK")
TIME_UNITS = _words("duration-day duration-week duration-month duration-year")

POOLS: dict[str, tuple] = {
    # Countries that need no article in German and follow the regular rules for cases below.
    "country": _words(
        "AZ BE BR CM CZ DE DK DZ EG ES ET FI GR HR HU IE IS IT JO KG KH LT LV MA MX NO PL RO RU SE SI SY TJ TN UZ"
    ),
    # Languages whose Russian name is a regular adjective.
    "language": _words(
        "ar bg cs da de el es et fa fi fr hr hu hy is it ja ka ko lt lv mn pl pt ro ru sl sq sr sv tr uk vi zh"
    ),
    "weekday": tuple(range(7)),  # Monday is 0
    "month": MONTHS,
    "date": tuple((day, month) for month in MONTHS for day in DAYS),
    "time": (5, 7, 8, 9, 10, 11),  # full hours
    "count": COUNTS,
    "price": tuple((n, currency) for currency in CURRENCIES for n in COUNTS),
    "duration": tuple((n, unit) for unit in TIME_UNITS for n in AMOUNTS if n <= 30),
    "distance": tuple((n, "length-kilometer") for n in AMOUNTS),
    "weight": tuple((n, "mass-kilogram") for n in AMOUNTS),
}
"""Slot → its values, in the order that fixes a seed's text: a code, a number, or (number, code)."""


@dataclass(frozen=True)
class Language:
    """How one language says what the corpus says.

    ``templates``: name → sentence with slots ``{slot}`` or ``{slot:form}``.
    ``number(n, form)``: n in words, 3 ≤ n < 100; ``form``: "day" in dates, else what a template or ``before`` says.
    ``date``: a date from ``{day}`` and ``{month}``.
    ``forms``: form → function from the plain text of a slot (a nominative, mostly) to that form.
    ``names``: by code (of a unit: "unit/plural category"), instead of a CLDR name that does not fit into a sentence.
    ``before``: unit or currency → form of a number in front of it.
    ``spaced``: whether words are separated by spaces.
    """

    templates: Mapping[str, str]
    number: Callable[[int, str], str]
    date: str = "{day} {month}"
    forms: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)
    spaced: bool = True


# --- English ---------------------------------------------------------------------------------------------------------


def _english_number(n: int, form: str) -> str:
    return num2words(n, lang="en", to="ordinal" if form == "day" else "cardinal")


ENGLISH = Language(
    number=_english_number,
    date="the {day} of {month}",
    templates={
        "flight": "On {weekday} we are flying to {country}, where we will stay for {duration}.",
        "train": "The night train to {country} leaves on {weekday} at {time} o’clock.",
        "ride": "The airport is {distance} from our guesthouse, so the ride there costs {price}.",
        "permit": "Do I need a permit if I stay in {country} for {duration}?",
        "guesthouse": "The guesthouse by the sea has {count} rooms, and a night there costs {price}.",
        "rain": "It rained in {country} for {duration} without stopping.",
        "snow": "In {month} {count} centimeters of snow fell in the mountains of {country}.",
        "chance": "The chance of rain in {country} on {weekday} is {count} percent.",
        "storm": "Forecasters expect a heavy storm in {country} on {date}.",
        "coat": "This warm coat comes from {country} and costs only {price}.",
        "apples": "I bought {weight} of apples at the market and paid {price} for them.",
        "parcel": "Your parcel weighs {weight} and should arrive on {date}.",
        "meeting": "The meeting with our customers from {country} is on {date} at {time} o’clock.",
        "pay": "He has only worked here for {duration} and earns {price} an hour.",
        "vacancy": "We are looking for someone who speaks {language} and can start on {date}.",
        "course": "The {language} course lasts {duration} and costs {price}.",
        "class": "At our school {count} children are learning {language}.",
        "book": "The pupils read a book about {country} and talked about it in {language}.",
        "exam": "The written exam in {language} takes place on {date}.",
        "tablets": "The doctor says that you must take the tablets for {duration} and come back on {date}.",
        "clinic": "The new clinic opens on {date} and has beds for {count} patients.",
        "walk": "She has already walked {distance} this month and now weighs only {weight}.",
        "rice": "We need {weight} of rice to cook for {count} guests.",
        "inn": "On {weekday} we ate in a small inn run by a family from {country} and paid {price}.",
        "cheese": "This cheese from {country} has to ripen for {duration}.",
        "match": "The team from {country} plays its last game on {date} at {time} o’clock.",
        "race": "The cyclists from {country} trained for {duration} and now ride {distance} every day.",
        "fans": "On {weekday} a ship took {count} fans to {country} for the game.",
        "novel": "The novel has been translated into {language} and will be on sale from {date}.",
        "bridges": "According to the newspaper, it took {duration} to build {count} bridges in {country}.",
        "exhibition": "Until {date} the exhibition is showing {count} paintings from {country}.",
        "brother": "My brother has been living in {country} for {duration} and speaks {language} well.",
        "wedding": "We are expecting {count} guests from {country} at the wedding on {date}.",
    },
)


# --- German ----------------------------------------------------------------------------------------------------------


def _german_number(n: int, form: str) -> str:
    return num2words(n, lang="de", to="ordinal") + "n" if form == "day" else num2words(n, lang="de")


GERMAN = Language(
    number=_german_number,
    names={  # CLDR writes the adjective with a capital, as on its own
        "CZK": "tschechische Kronen",
        "DKK": "dänische Kronen",
        "EGP": "ägyptische Pfund",
        "GBP": "britische Pfund",
        "INR": "indische Rupien",
        "NOK": "norwegische Kronen",
        "RUB": "russische Rubel",
        "SEK": "schwedische Kronen",
    },
    templates={
        "flight": "Am {weekday} fliegen wir nach {country} und bleiben dort {duration}.",
        "train": "Der Nachtzug nach {country} fährt am {weekday} um {time} Uhr ab.",
        "ride": "Der Flughafen liegt {distance} von unserer Pension entfernt, deshalb kostet die Fahrt {price}.",
        "permit": "Brauche ich eine Erlaubnis, wenn ich {duration} in {country} bleibe?",
        "guesthouse": "Die Pension am Meer hat {count} Zimmer, und eine Nacht dort kostet {price}.",
        "rain": "In {country} hat es {duration} ohne Pause geregnet.",
        "snow": "In {country} fielen im {month} {count} Zentimeter Schnee in den Bergen.",
        "chance": "Am {weekday} regnet es in {country} mit einer Wahrscheinlichkeit von {count} Prozent.",
        "storm": "Die Wetterdienste erwarten am {date} in {country} ein schweres Unwetter.",
        "coat": "Dieser warme Mantel kommt aus {country} und kostet nur {price}.",
        "apples": "Ich habe auf dem Markt {weight} Äpfel gekauft und dafür {price} bezahlt.",
        "parcel": "Ihr Paket wiegt {weight} und kommt voraussichtlich am {date} an.",
        "meeting": "Das Treffen mit unseren Kunden aus {country} ist am {date} um {time} Uhr.",
        "pay": "Er arbeitet erst {duration} hier und verdient {price} in der Stunde.",
        "vacancy": "Wir suchen jemanden, der {language} spricht und am {date} anfangen kann.",
        "course": "Der {language}kurs dauert {duration} und kostet {price}.",
        "class": "An unserer Schule lernen {count} Kinder {language}.",
        "book": "Die Schüler lasen ein Buch über {country} und sprachen darüber auf {language}.",
        "exam": "Die schriftliche {language}prüfung findet am {date} statt.",
        "tablets": "Die Ärztin sagt, du sollst die Tabletten {duration} nehmen und am {date} wiederkommen.",
        "clinic": "Die neue Klinik öffnet am {date} und hat Betten für {count} Kranke.",
        "walk": "Sie ist diesen Monat schon {distance} gelaufen und wiegt nur noch {weight}.",
        "rice": "Wir brauchen {weight} Reis, um für {count} Gäste zu kochen.",
        "inn": "Am {weekday} aßen wir in der kleinen Gaststube einer Familie aus {country} und zahlten {price}.",
        "cheese": "Dieser Käse aus {country} muss {duration} reifen.",
        "match": "Die Mannschaft aus {country} bestreitet ihr letztes Spiel am {date} um {time} Uhr.",
        "race": "Die Radfahrer aus {country} trainierten {duration} und fahren nun jeden Tag {distance}.",
        "fans": "Am {weekday} brachte ein Schiff {count} Anhänger zum Spiel nach {country}.",
        "novel": "Der Roman wurde ins {language}e übersetzt und ist ab dem {date} im Handel.",
        "bridges": "Laut der Zeitung dauerte es {duration}, in {country} {count} Brücken zu bauen.",
        "exhibition": "Die Ausstellung zeigt bis zum {date} {count} Bilder aus {country}.",
        "brother": "Mein Bruder lebt schon {duration} in {country} und spricht gut {language}.",
        "wedding": "Zur Hochzeit am {date} erwarten wir {count} Gäste aus {country}.",
    },
)


# --- Spanish ---------------------------------------------------------------------------------------------------------

SPANISH = Language(
    number=lambda n, form: num2words(n, lang="es"),
    date="{day} de {month}",
    templates={
        "flight": "El {weekday} volamos a {country}, donde nos quedaremos {duration}.",
        "train": "El tren nocturno a {country} sale el {weekday} a las {time}.",
        "ride": "El aeropuerto está a {distance} de nuestra pensión, así que el viaje hasta allí cuesta {price}.",
        "permit": "¿Necesito un permiso si me quedo {duration} en {country}?",
        "guesthouse": "La pensión junto al mar tiene {count} habitaciones, y una noche allí cuesta {price}.",
        "rain": "En {country} llovió {duration} sin parar.",
        "snow": "En {month} cayeron {count} centímetros de nieve en las montañas de {country}.",
        "chance": "La probabilidad de lluvia en {country} el {weekday} es del {count} por ciento.",
        "storm": "Los meteorólogos esperan una fuerte tormenta en {country} el {date}.",
        "coat": "Este abrigo tan cálido viene de {country} y solo cuesta {price}.",
        "apples": "Compré {weight} de manzanas en el mercado y pagué {price} por ellas.",
        "parcel": "Su paquete pesa {weight} y debería llegar el {date}.",
        "meeting": "La reunión con nuestros clientes de {country} es el {date} a las {time}.",
        "pay": "Solo lleva {duration} trabajando aquí y gana {price} por hora.",
        "vacancy": "Buscamos a alguien que hable {language} y pueda empezar el {date}.",
        "course": "El curso de {language} dura {duration} y cuesta {price}.",
        "class": "En nuestra escuela {count} niños aprenden {language}.",
        "book": "Los alumnos leyeron un libro sobre {country} y hablaron de él en {language}.",
        "exam": "El examen escrito de {language} tendrá lugar el {date}.",
        "tablets": "La médica dice que debes tomar las pastillas durante {duration} y volver el {date}.",
        "clinic": "La nueva clínica abre el {date} y tiene camas para {count} enfermos.",
        "walk": "Este mes ella ya ha caminado {distance} y ahora pesa solo {weight}.",
        "rice": "Necesitamos {weight} de arroz para cocinar para {count} invitados.",
        "inn": "El {weekday} comimos en la pequeña taberna de una familia de {country} y pagamos {price}.",
        "cheese": "Este queso de {country} tiene que madurar {duration}.",
        "match": "El equipo de {country} juega su último partido el {date} a las {time}.",
        "race": "Los ciclistas de {country} entrenaron {duration} y ahora recorren {distance} cada día.",
        "fans": "El {weekday} un barco llevó a {count} aficionados a {country} para el partido.",
        "novel": "La novela se ha traducido al {language} y estará a la venta desde el {date}.",
        "bridges": "Según el periódico, hicieron falta {duration} para construir {count} puentes en {country}.",
        "exhibition": "Hasta el {date} la exposición muestra {count} cuadros de {country}.",
        "brother": "Mi hermano vive en {country} desde hace {duration} y habla {language} muy bien.",
        "wedding": "Esperamos a {count} invitados de {country} en la boda del {date}.",
    },
)


# --- French ----------------------------------------------------------------------------------------------------------


def _french_elides(name: str) -> bool:
    return name[0].lower() in "aeiouéî"


def _french_feminine(country: str) -> bool:
    return country.endswith("e") and country not in ("Mexique", "Cambodge")


def _french_in(country: str) -> str:
    return ("en " if _french_elides(country) or _french_feminine(country) else "au ") + country


def _french_from(country: str) -> str:
    if _french_elides(country):
        return "d’" + country
    return ("de " if _french_feminine(country) else "du ") + country


def _french_the(name: str) -> str:
    """With the article: countries by gender, languages (written small) are masculine."""
    if _french_elides(name):
        return "l’" + name
    return ("la " if name[0].isupper() and _french_feminine(name) else "le ") + name


FRENCH = Language(
    number=lambda n, form: num2words(n, lang="fr"),
    forms={
        "in": _french_in,
        "from": _french_from,
        "the": _french_the,
        "of": lambda language: ("d’" if _french_elides(language) else "de ") + language,
    },
    templates={
        "flight": "{weekday}, nous nous envolerons pour {country:the} et y resterons {duration}.",
        "train": "Le train de nuit pour {country:the} part {weekday} à {time} heures.",
        "ride": "L’aéroport est à {distance} de notre auberge, donc le trajet coûte {price}.",
        "permit": "Est-ce que j’ai besoin d’une autorisation si je reste {duration} {country:in} ?",
        "guesthouse": "L’auberge au bord de la mer compte {count} chambres, et une nuit y coûte {price}.",
        "rain": "Il a plu sans arrêt {country:in} pendant {duration}.",
        "snow": "En {month}, il est tombé {count} centimètres de neige dans les montagnes {country:from}.",
        "chance": "{weekday}, le risque de pluie {country:in} sera de {count} pour cent.",
        "storm": "Les météorologues prévoient une forte tempête {country:in} le {date}.",
        "coat": "Ce manteau bien chaud vient {country:from} et ne coûte que {price}.",
        "apples": "J’ai acheté {weight} de pommes au marché et je les ai payées {price}.",
        "parcel": "Votre colis pèse {weight} et devrait arriver le {date}.",
        "meeting": "La réunion avec nos clients {country:from} est le {date} à {time} heures.",
        "pay": "Il ne travaille ici que depuis {duration} et gagne {price} de l’heure.",
        "vacancy": "Nous cherchons quelqu’un qui parle {language} et qui puisse commencer le {date}.",
        "course": "Le cours {language:of} dure {duration} et coûte {price}.",
        "class": "Dans notre école, {count} enfants apprennent {language:the}.",
        "book": "Les élèves ont lu un livre sur {country:the} et en ont parlé en {language}.",
        "exam": "L’épreuve écrite {language:of} aura lieu le {date}.",
        "tablets": "Le médecin dit que tu dois prendre les comprimés pendant {duration} et revenir le {date}.",
        "clinic": "La nouvelle clinique ouvre le {date} et dispose de lits pour {count} malades.",
        "walk": "Ce mois-ci, elle a déjà marché {distance} et ne pèse plus que {weight}.",
        "rice": "Il nous faut {weight} de riz pour cuisiner pour {count} invités.",
        "inn": "{weekday}, nous avons mangé dans la petite taverne d’une famille {country:from} et payé {price}.",
        "cheese": "Ce fromage {country:from} doit mûrir pendant {duration}.",
        "match": "L’équipe {country:from} dispute son dernier match le {date} à {time} heures.",
        "race": "Les cyclistes {country:from} se sont entraînés {duration} et font maintenant {distance} par jour.",
        "fans": "{weekday}, un bateau a emmené {count} supporteurs {country:in} pour le match.",
        "novel": "Le roman a été traduit en {language} et sera en vente à partir du {date}.",
        "bridges": "Selon le journal, il a fallu {duration} pour construire {count} ponts {country:in}.",
        "exhibition": "Jusqu’au {date}, l’exposition présente {count} tableaux {country:from}.",
        "brother": "Mon frère vit {country:in} depuis {duration} et parle bien {language}.",
        "wedding": "Nous attendons {count} invités {country:from} au mariage du {date}.",
    },
)


# --- Russian ---------------------------------------------------------------------------------------------------------


def _russian_number(n: int, form: str) -> str:
    if form == "day":
        return num2words(n, lang="ru", to="ordinal", case="genitive", gender="n")
    return num2words(n, lang="ru")


def _russian_accusative(noun: str) -> str:
    return {"а": noun[:-1] + "у", "я": noun[:-1] + "ю"}.get(noun[-1], noun)


def _russian_genitive(noun: str) -> str:
    if noun == "Египет":
        return "Египта"
    if noun[-1] in "ая":
        return noun[:-1] + ("ы" if noun[-1] == "а" and noun[-2] not in "гкхжшчщ" else "и")
    return noun if noun[-1] == "о" else noun + "а"


def _russian_prepositional(noun: str) -> str:
    """Of a country, or of a month in the genitive."""
    if noun == "Египет":
        return "Египте"
    if noun.endswith("ия"):
        return noun[:-1] + "и"
    if noun[-1] == "о":
        return noun
    return (noun[:-1] if noun[-1] in "аяйь" else noun) + "е"


def _russian_on(weekday: str) -> str:
    return ("во " if weekday.startswith("вт") else "в ") + _russian_accusative(weekday)


RUSSIAN = Language(
    number=_russian_number,
    forms={
        "to": _russian_accusative,
        "of": _russian_genitive,
        "in": _russian_prepositional,
        "on": _russian_on,
        "stem": lambda adjective: adjective.removesuffix("ий"),
    },
    names={"mass-kilogram/many": "килограммов"},
    templates={
        "flight": "{weekday:on} мы летим в {country:to} и останемся там на {duration}.",
        "train": "Ночной поезд в {country:to} отправляется {weekday:on} в {time} часов.",
        "ride": "От аэропорта до нашей гостиницы {distance}, поэтому дорога туда стоит {price}.",
        "permit": "Нужно ли мне разрешение, если я останусь в {country:in} на {duration}?",
        "guesthouse": "В гостинице у моря {count} номеров, и одна ночь там стоит {price}.",
        "rain": "В {country:in} {duration} без перерыва шёл дождь.",
        "snow": "В {month:in} в горах {country:of} выпало {count} сантиметров снега.",
        "chance": "{weekday:on} вероятность дождя в {country:in} составит {count} процентов.",
        "storm": "Синоптики ожидают {date} в {country:in} сильную бурю.",
        "coat": "Это тёплое пальто привезли из {country:of}, и стоит оно всего {price}.",
        "apples": "Я купил на рынке {weight} яблок и заплатил за них {price}.",
        "parcel": "Ваша посылка весит {weight} и должна прийти {date}.",
        "meeting": "Встреча с нашими клиентами из {country:of} состоится {date} в {time} часов.",
        "pay": "Он работает здесь всего {duration} и получает {price} в час.",
        "vacancy": "Мы ищем человека, который говорит на {language:stem}ом языке и может начать работу {date}.",
        "course": "Курс {language:stem}ого языка длится {duration} и стоит {price}.",
        "class": "В нашей школе {count} детей учат {language} язык.",
        "book": "Ученики прочитали книгу про {country:to} и обсудили её на {language:stem}ом языке.",
        "exam": "Письменный экзамен по {language:stem}ому языку состоится {date}.",
        "tablets": "Врач говорит, что тебе надо принимать таблетки {duration} и снова прийти {date}.",
        "clinic": "Новая клиника откроется {date} и сможет принять {count} больных.",
        "walk": "В этом месяце она уже прошла пешком {distance} и весит теперь всего {weight}.",
        "rice": "Чтобы накормить {count} гостей, нам нужно {weight} риса.",
        "inn": "{weekday:on} мы поели в маленькой таверне у семьи из {country:of} и заплатили {price}.",
        "cheese": "Этот сыр из {country:of} должен зреть {duration}.",
        "match": "Команда из {country:of} сыграет свой последний матч {date} в {time} часов.",
        "race": "Велосипедисты из {country:of} тренировались {duration} и теперь проезжают {distance} в день.",
        "fans": "{weekday:on} корабль повёз {count} болельщиков на матч в {country:to}.",
        "novel": "Роман перевели на {language} язык, и с {date} он появится в продаже.",
        "bridges": "Как пишет газета, чтобы построить в {country:in} {count} мостов, понадобилось {duration}.",
        "exhibition": "До {date} на выставке можно увидеть {count} картин из {country:of}.",
        "brother": "Мой брат живёт в {country:in} уже {duration} и хорошо говорит на {language:stem}ом языке.",
        "wedding": "На свадьбу {date} мы ждём {count} гостей из {country:of}.",
    },
)


# --- Chinese ---------------------------------------------------------------------------------------------------------


def _chinese_number(n: int, form: str) -> str:
    tens, units = divmod(n, 10)
    digits = ("", *"一二三四五六七八九")
    return (digits[tens] if tens > 1 else "") + ("十" if tens else "") + digits[units]


CHINESE = Language(
    number=_chinese_number,
    date="{month}{day}日",
    names={"mass-kilogram/other": "公斤"},
    spaced=False,
    templates={
        "flight": "{weekday}我们飞往{country}，在那里停留{duration}。",
        "train": "开往{country}的夜班火车将于{weekday}{time}点出发。",
        "ride": "机场离我们的旅馆有{distance}，所以去那里的车费是{price}。",
        "permit": "如果我在{country}停留{duration}，需要许可证吗？",
        "guesthouse": "海边的旅馆有{count}个房间，住一晚要{price}。",
        "rain": "{country}的雨不停地下了{duration}。",
        "snow": "{month}，{country}的山区下了{count}厘米厚的雪。",
        "chance": "{weekday}{country}下雨的可能性是百分之{count}。",
        "storm": "气象专家预计{date}{country}会有强烈的暴风雨。",
        "coat": "这件暖和的大衣来自{country}，只要{price}。",
        "apples": "我在市场上买了{weight}苹果，付了{price}。",
        "parcel": "您的包裹重{weight}，预计{date}送到。",
        "meeting": "与{country}客户的会议定于{date}{time}点举行。",
        "pay": "他在这里才工作了{duration}，每小时挣{price}。",
        "vacancy": "我们正在找一位会说{language}、{date}就能开始工作的人。",
        "course": "{language}课程为期{duration}，费用是{price}。",
        "class": "我们学校有{count}个孩子在学{language}。",
        "book": "学生们读了一本关于{country}的书，并用{language}进行了讨论。",
        "exam": "{language}笔试将于{date}举行。",
        "tablets": "医生说你要吃{duration}的药，然后{date}再来复诊。",
        "clinic": "新诊所{date}开业，可以接收{count}名病人。",
        "walk": "这个月她已经走了{distance}，现在体重只有{weight}。",
        "rice": "要给{count}位客人做饭，我们需要{weight}大米。",
        "inn": "{weekday}我们在一家{country}人开的小饭馆吃了饭，花了{price}。",
        "cheese": "这种{country}奶酪需要熟成{duration}。",
        "match": "{country}队将于{date}{time}点进行最后一场比赛。",
        "race": "{country}的自行车手训练了{duration}，现在每天骑{distance}。",
        "fans": "{weekday}一艘船载着{count}名球迷前往{country}观看比赛。",
        "novel": "这部小说已经译成{language}，{date}起发售。",
        "bridges": "据报纸报道，在{country}修建{count}座桥用了{duration}。",
        "exhibition": "展览展出{count}幅来自{country}的画，到{date}为止。",
        "brother": "我哥哥在{country}生活了{duration}，{language}说得很好。",
        "wedding": "我们等着{count}位来自{country}的客人参加{date}的婚礼。",
    },
)


# --- Arabic ----------------------------------------------------------------------------------------------------------

# 0: "the twentieth"; 1 as in compounds
_ARABIC_ORDINALS = _words("العشرين الحادي الثاني الثالث الرابع الخامس السادس السابع الثامن التاسع العاشر")


def _arabic_number(n: int, form: str) -> str:
    """Oblique case throughout. "" counts masculine nouns, "feminine" feminine ones; "day" and "hour" are ordinals."""
    if form in ("day", "hour"):
        ending = "ة" if form == "hour" else ""
        if n <= 10:
            return _ARABIC_ORDINALS[n] + ending
        unit = _ARABIC_ORDINALS[n % 10]
        if n < 20:
            return f"{unit}{ending} عشر{ending}"
        return unit if n == 20 else f"{unit} و{_ARABIC_ORDINALS[0]}"
    text = num2words(n, lang="ar").replace(" و ", " و").replace("ون", "ين")
    if form == "feminine":  # numbers take the other gender's ending; the ten of 13 to 19 agrees
        units, *rest = text.split(" ")
        text = " ".join([units.removesuffix("ة"), *(word + "ة" if word == "عشر" else word for word in rest)])
    return text


ARABIC = Language(
    number=_arabic_number,
    date="{day} من {month}",
    before=dict.fromkeys(_words("duration-year CZK DKK INR NOK SEK"), "feminine"),
    names={  # where CLDR leaves out the accusative or the plural, or slips
        "GBP": "جنيهًا إسترلينيًا",
        "INR": "روبية هندية",
        "RUB": "روبلًا روسيًا",
        "duration-week/many": "أسبوعًا",
        "mass-kilogram/few": "كيلوغرامات",
        "mass-kilogram/many": "كيلوغرامًا",
        "sl": "السلوفينية",
    },
    templates={
        "flight": "سنسافر يوم {weekday} بالطائرة إلى {country} ونبقى هناك لمدة {duration}.",
        "train": "يغادر القطار الليلي المتجه إلى {country} يوم {weekday} في الساعة {time:hour}.",
        "ride": "يبعد المطار {distance} عن الفندق، ولذلك تكلف الرحلة إليه {price}.",
        "permit": "هل أحتاج إلى تصريح إذا بقيت في {country} لمدة {duration}؟",
        "guesthouse": "يضم الفندق المطل على البحر {count:feminine} غرفة، وتكلف الليلة فيه {price}.",
        "rain": "هطل المطر في {country} دون توقف لمدة {duration}.",
        "snow": "بلغ سمك الثلج على جبال {country} في شهر {month} {count} سنتيمترًا.",
        "chance": "تبلغ احتمالية هطول المطر في {country} يوم {weekday} {count} بالمئة.",
        "storm": "يتوقع خبراء الأرصاد عاصفة شديدة في {country} في {date}.",
        "coat": "هذا المعطف الدافئ من {country} ولا يكلف إلا {price}.",
        "apples": "اشتريت من السوق {weight} من التفاح ودفعت {price}.",
        "parcel": "يزن طردك {weight} ومن المتوقع أن يصل في {date}.",
        "meeting": "سيعقد الاجتماع مع عملائنا من {country} في {date} في الساعة {time:hour}.",
        "pay": "يعمل هنا منذ {duration} فقط ويكسب {price} في الساعة.",
        "vacancy": "نبحث عن شخص يتكلم {language} ويستطيع أن يبدأ العمل في {date}.",
        "course": "تستمر دورة اللغة {language} لمدة {duration} وتكلف {price}.",
        "class": "تعلم مدرستنا {count} طفلًا اللغة {language}.",
        "book": "قرأ التلاميذ كتابًا عن {country} وناقشوه باللغة {language}.",
        "exam": "سيجرى الامتحان التحريري في اللغة {language} في {date}.",
        "tablets": "تقول الطبيبة إن عليك تناول الأقراص لمدة {duration} والعودة في {date}.",
        "clinic": "تفتح العيادة الجديدة أبوابها في {date} وتستقبل {count} مريضًا.",
        "walk": "لقد مشت هذا الشهر {distance} ولم تعد تزن إلا {weight}.",
        "rice": "نحتاج إلى {weight} من الأرز لكي نطعم {count} ضيفًا.",
        "inn": "أكلنا يوم {weekday} في مطعم صغير لعائلة من {country} ودفعنا {price}.",
        "cheese": "يجب أن ينضج هذا الجبن القادم من {country} لمدة {duration}.",
        "match": "يلعب فريق {country} مباراته الأخيرة في {date} في الساعة {time:hour}.",
        "race": "تدرب راكبو الدراجات من {country} لمدة {duration} وهم يقطعون الآن {distance} كل يوم.",
        "fans": "نقلت سفينة يوم {weekday} {count} مشجعًا إلى {country} لحضور المباراة.",
        "novel": "ترجمت الرواية إلى اللغة {language} وستباع ابتداءً من {date}.",
        "bridges": "ذكرت الصحيفة أن بناء {count} جسرًا في {country} استغرق {duration}.",
        "exhibition": "يقدم المعرض حتى {date} {count:feminine} لوحة من {country}.",
        "brother": "يعيش أخي في {country} منذ {duration} ويتكلم {language} جيدًا.",
        "wedding": "ننتظر {count} ضيفًا من {country} في حفل الزفاف في {date}.",
    },
)


# --- Hindi -----------------------------------------------------------------------------------------------------------

_HINDI_NUMBERS = _words(
    "शून्य एक दो तीन चार पाँच छह सात आठ नौ "
    "दस ग्यारह बारह तेरह चौदह पंद्रह सोलह सत्रह अठारह उन्नीस "
    "बीस इक्कीस बाईस तेईस चौबीस पच्चीस छब्बीस सत्ताईस अट्ठाईस उनतीस "
    "तीस इकतीस बत्तीस तैंतीस चौंतीस पैंतीस छत्तीस सैंतीस अड़तीस उनतालीस "
    "चालीस इकतालीस बयालीस तैंतालीस चौवालीस पैंतालीस छियालीस सैंतालीस अड़तालीस उनचास "
    "पचास इक्यावन बावन तिरपन चौवन पचपन छप्पन सत्तावन अट्ठावन उनसठ "
    "साठ इकसठ बासठ तिरसठ चौंसठ पैंसठ छियासठ सड़सठ अड़सठ उनहत्तर "
    "सत्तर इकहत्तर बहत्तर तिहत्तर चौहत्तर पचहत्तर छिहत्तर सतहत्तर अठहत्तर उनासी "
    "अस्सी इक्यासी बयासी तिरासी चौरासी पचासी छियासी सत्तासी अट्ठासी नवासी "
    "नब्बे इक्यानवे बानवे तिरानवे चौरानवे पचानवे छियानवे सत्तानवे अट्ठानवे निन्यानवे"
)

HINDI = Language(
    number=lambda n, form: _HINDI_NUMBERS[n],
    names={"CZK": "चेक कोरुना", "EGP": "मिस्री पाउंड", "SEK": "स्वीडिश क्रोना"},
    templates={
        "flight": "{weekday} को हम विमान से {country} जा रहे हैं और वहाँ {duration} रहेंगे।",
        "train": "{country} जाने वाली रात की रेलगाड़ी {weekday} को {time} बजे छूटती है।",
        "ride": "हवाई अड्डा हमारे अतिथि गृह से {distance} दूर है, इसलिए वहाँ जाने में {price} लगते हैं।",
        "permit": "अगर मैं {country} में {duration} रहूँ, तो क्या मुझे अनुमति लेनी होगी?",
        "guesthouse": "समुद्र के किनारे वाले अतिथि गृह में {count} कमरे हैं और वहाँ एक रात के {price} लगते हैं।",
        "rain": "{country} में {duration} तक लगातार बारिश हुई।",
        "snow": "{month} में {country} के पहाड़ों पर {count} सेंटीमीटर बर्फ़ गिरी।",
        "chance": "{weekday} को {country} में बारिश की संभावना {count} प्रतिशत है।",
        "storm": "मौसम विशेषज्ञों को {date} को {country} में तेज़ तूफ़ान की आशंका है।",
        "coat": "यह गर्म कोट {country} से आया है और इसकी क़ीमत सिर्फ़ {price} है।",
        "apples": "मैंने बाज़ार से {weight} सेब ख़रीदे और उनके लिए {price} दिए।",
        "parcel": "आपके पार्सल का वज़न {weight} है और वह {date} को पहुँच जाएगा।",
        "meeting": "{country} के हमारे ग्राहकों के साथ बैठक {date} को {time} बजे है।",
        "pay": "वह यहाँ सिर्फ़ {duration} से काम कर रहा है और हर घंटे {price} कमाता है।",
        "vacancy": "हमें ऐसा व्यक्ति चाहिए जो {language} बोलता हो और {date} को काम शुरू कर सके।",
        "course": "{language} का पाठ्यक्रम {duration} चलता है और इसकी फ़ीस {price} है।",
        "class": "हमारे स्कूल में {count} बच्चे {language} सीख रहे हैं।",
        "book": "विद्यार्थियों ने {country} के बारे में एक किताब पढ़ी और {language} में उस पर बात की।",
        "exam": "{language} की लिखित परीक्षा {date} को होगी।",
        "tablets": "डॉक्टर कहते हैं कि तुम्हें {duration} तक गोलियाँ लेनी हैं और {date} को फिर आना है।",
        "clinic": "नया अस्पताल {date} को खुलेगा और उसमें {count} मरीज़ों के लिए बिस्तर हैं।",
        "walk": "इस महीने वह {distance} पैदल चल चुकी है और अब उसका वज़न सिर्फ़ {weight} है।",
        "rice": "{count} मेहमानों का खाना बनाने के लिए हमें {weight} चावल चाहिए।",
        "inn": "{weekday} को हमने {country} के एक परिवार के छोटे भोजनालय में खाना खाया और {price} दिए।",
        "cheese": "{country} के इस पनीर को पकने में {duration} लगते हैं।",
        "match": "{country} की टीम अपना आख़िरी मैच {date} को {time} बजे खेलेगी।",
        "race": "{country} के साइकिल सवारों ने {duration} तक अभ्यास किया और अब वे रोज़ {distance} चलाते हैं।",
        "fans": "{weekday} को एक जहाज़ {count} प्रशंसकों को मैच के लिए {country} ले गया।",
        "novel": "उपन्यास का {language} में अनुवाद हो चुका है और वह {date} से बिकेगा।",
        "bridges": "अख़बार के अनुसार {country} में {count} पुल बनाने में {duration} लगे।",
        "exhibition": "प्रदर्शनी में {date} तक {country} के {count} चित्र दिखाए जा रहे हैं।",
        "brother": "मेरा भाई {duration} से {country} में रह रहा है और अच्छी {language} बोलता है।",
        "wedding": "{date} की शादी में हमें {country} से {count} मेहमानों के आने की उम्मीद है।",
    },
)


# --- Turkish ---------------------------------------------------------------------------------------------------------


def _turkish_vowel(word: str) -> tuple[bool, bool]:
    """Whether the last vowel of ``word`` is front and whether it is rounded: what a suffix agrees with."""
    vowel = next(letter for letter in reversed(word) if letter in "aeıioöuü")
    return vowel in "eiöü", vowel in "oöuü"


def _turkish_case(word: str, case: str) -> str:
    front, _ = _turkish_vowel(word)
    vowel = "e" if front else "a"
    if case == "dative":
        return ("y" if word[-1] in "aeıioöuü" else "") + vowel
    return ("t" if word[-1] in "fstkçşhp" else "d") + vowel + ("n" if case == "ablative" else "")


def _turkish_since(duration: str) -> str:
    front, rounded = _turkish_vowel(duration)
    return f"{duration}d{('ıu', 'iü')[front][rounded]}r"


def _turkish_number(n: int, form: str) -> str:
    words = " ".join(num2words(part, lang="tr") for part in (n // 10 * 10, n % 10) if part)
    return words + _turkish_case(words, "locative") if form == "at" else words


TURKISH = Language(
    number=_turkish_number,
    forms={
        "to": lambda name: f"{name}’{_turkish_case(name, 'dative')}",
        "at": lambda name: f"{name}’{_turkish_case(name, 'locative')}",
        "from": lambda name: f"{name}’{_turkish_case(name, 'ablative')}",
        "since": _turkish_since,
    },
    templates={
        "flight": "{weekday} günü {country:to} uçuyoruz ve orada {duration} kalacağız.",
        "train": "{country:to} giden gece treni {weekday} günü saat {time:at} kalkıyor.",
        "ride": "Havaalanı pansiyonumuza {distance} uzaklıkta, bu yüzden oraya yolculuk {price} tutuyor.",
        "permit": "{country:at} {duration} kalırsam izin almam gerekiyor mu?",
        "guesthouse": "Deniz kenarındaki pansiyonda {count} oda var ve orada bir gece {price} tutuyor.",
        "rain": "{country:at} {duration} boyunca durmadan yağmur yağdı.",
        "snow": "{month} ayında {country} dağlarına {count} santimetre kar yağdı.",
        "chance": "{weekday} günü {country:at} yağmur ihtimali yüzde {count}.",
        "storm": "Hava tahmincileri {date} tarihinde {country:at} şiddetli bir fırtına bekliyor.",
        "coat": "Bu kalın palto {country:from} geliyor ve yalnızca {price} ediyor.",
        "apples": "Pazardan {weight} elma aldım ve {price} ödedim.",
        "parcel": "Paketiniz {weight} ağırlığında ve {date} tarihinde gelmesi bekleniyor.",
        "meeting": "{country:from} gelen müşterilerimizle toplantı {date} tarihinde saat {time:at}.",
        "pay": "Yalnızca {duration:since} burada çalışıyor ve saatte {price} kazanıyor.",
        "vacancy": "{language} konuşan ve {date} tarihinde işe başlayabilecek birini arıyoruz.",
        "course": "{language} kursu {duration} sürüyor ve {price} tutuyor.",
        "class": "Okulumuzda {count} çocuk {language} öğreniyor.",
        "book": "Öğrenciler {country} ile ilgili bir kitap okudular ve kitap hakkında {language} konuştular.",
        "exam": "Yazılı {language} sınavı {date} tarihinde yapılacak.",
        "tablets": "Doktor, hapları {duration} boyunca almanı ve {date} tarihinde tekrar gelmeni söylüyor.",
        "clinic": "Yeni klinik {date} tarihinde açılıyor ve {count} hasta için yatağı var.",
        "walk": "Bu ay şimdiden {distance} yürüdü ve artık yalnızca {weight} ağırlığında.",
        "rice": "{count} misafire yemek pişirmek için {weight} pirince ihtiyacımız var.",
        "inn": "{weekday} günü {country:from} gelen bir ailenin küçük lokantasında yemek yedik ve {price} ödedik.",
        "cheese": "{country:from} gelen bu peynirin {duration} olgunlaşması gerekiyor.",
        "match": "{country} takımı son maçını {date} tarihinde saat {time:at} oynuyor.",
        "race": "{country:from} gelen bisikletçiler {duration} çalıştılar ve artık her gün {distance} yol alıyorlar.",
        "fans": "{weekday} günü bir gemi {count} taraftarı maç için {country:to} götürdü.",
        "novel": "Romanın {language} çevirisi yapıldı ve kitap {date} tarihinden itibaren satışta olacak.",
        "bridges": "Gazeteye göre {country:at} {count} köprü yapmak {duration} sürdü.",
        "exhibition": "Sergide {date} tarihine kadar {country:from} gelen {count} tablo gösteriliyor.",
        "brother": "Ağabeyim {duration:since} {country:at} yaşıyor ve iyi {language} konuşuyor.",
        "wedding": "{date} tarihindeki düğüne {country:from} {count} misafir bekliyoruz.",
    },
)


# --- Japanese --------------------------------------------------------------------------------------------------------

JAPANESE = Language(
    number=lambda n, form: num2words(n, lang="ja"),
    date="{month}{day}日",
    spaced=False,
    templates={
        "flight": "{weekday}に飛行機で{country}へ行き、そこに{duration}滞在します。",
        "train": "{country}行きの夜行列車は{weekday}の{time}時に出発します。",
        "ride": "空港は私たちの宿から{distance}離れているので、そこまでの料金は{price}です。",
        "permit": "{country}に{duration}滞在する場合、許可は必要ですか。",
        "guesthouse": "海辺の宿には部屋が{count}室あり、一泊の料金は{price}です。",
        "rain": "{country}では雨が{duration}休みなく降り続きました。",
        "snow": "{month}に{country}の山地で{count}センチの雪が降りました。",
        "chance": "{weekday}に{country}で雨が降る確率は{count}パーセントです。",
        "storm": "気象予報士は、{date}に{country}で激しい嵐になると予想しています。",
        "coat": "この暖かいコートは{country}製で、値段はたったの{price}です。",
        "apples": "市場でりんごを{weight}買い、{price}を払いました。",
        "parcel": "お客様の荷物の重さは{weight}で、{date}に届く予定です。",
        "meeting": "{country}のお客様との会議は{date}の{time}時からです。",
        "pay": "彼はここで働き始めてまだ{duration}で、時給は{price}です。",
        "vacancy": "{language}を話し、{date}から働ける人を探しています。",
        "course": "{language}の講座は期間が{duration}で、費用は{price}です。",
        "class": "私たちの学校では{count}人の子どもが{language}を習っています。",
        "book": "生徒たちは{country}についての本を読み、{language}で話し合いました。",
        "exam": "{language}の筆記試験は{date}に行われます。",
        "tablets": "医者は、薬を{duration}飲み、{date}にまた来るようにと言っています。",
        "clinic": "新しい診療所は{date}に開院し、{count}人の患者を受け入れられます。",
        "walk": "彼女は今月もう{distance}歩き、体重は今では{weight}しかありません。",
        "rice": "{count}人の客に料理を作るには、米が{weight}必要です。",
        "inn": "{weekday}に{country}出身の家族が営む小さな食堂で食事をし、{price}を払いました。",
        "cheese": "この{country}のチーズは{duration}熟成させなければなりません。",
        "match": "{country}のチームは{date}の{time}時に最後の試合をします。",
        "race": "{country}の自転車選手たちは{duration}練習し、今では毎日{distance}走ります。",
        "fans": "{weekday}に一隻の船が{count}人のファンを試合のために{country}へ運びました。",
        "novel": "その小説は{language}に翻訳され、{date}から発売されます。",
        "bridges": "新聞によると、{country}で{count}本の橋を造るのに{duration}かかりました。",
        "exhibition": "展覧会では{country}の絵が{count}枚、{date}まで展示されています。",
        "brother": "兄は{country}に住んで{duration}になり、{language}を上手に話します。",
        "wedding": "{date}の結婚式には{country}から{count}人の客が来る予定です。",
    },
)


# --- Korean ----------------------------------------------------------------------------------------------------------

_KOREAN_TENS = ("", *_words("열 스물 서른 마흔 쉰 예순 일흔 여든 아흔"))
_KOREAN_UNITS = ("", *_words("한 두 세 네 다섯 여섯 일곱 여덟 아홉"))


def _korean_number(n: int, form: str) -> str:
    """Sino-Korean, or with form "native" the native numbers that stand before counters and hours."""
    if form != "native":
        return num2words(n, lang="ko")
    return "스무" if n == 20 else _KOREAN_TENS[n // 10] + _KOREAN_UNITS[n % 10]


KOREAN = Language(
    number=_korean_number,
    date="{month} {day}일",
    names={"month 6": "유월", "month 10": "시월"},
    templates={
        "flight": "{weekday}에 비행기로 {country}에 가서 {duration} 동안 머물 것입니다.",
        "train": "{country}행 야간 열차는 {weekday} {time:native} 시에 출발합니다.",
        "ride": "공항은 우리 숙소에서 {distance} 떨어져 있어서 그곳까지의 요금은 {price}입니다.",
        "permit": "{country}에 {duration} 동안 머물려면 허가가 필요합니까?",
        "guesthouse": "바닷가 숙소에는 객실이 {count:native} 개 있고 하룻밤 요금은 {price}입니다.",
        "rain": "{country}에서는 {duration} 동안 쉬지 않고 비가 내렸습니다.",
        "snow": "{month}에 {country}의 산에는 눈이 {count} 센티미터 내렸습니다.",
        "chance": "{weekday}에 {country}에서 비가 올 확률은 {count} 퍼센트입니다.",
        "storm": "기상 전문가들은 {date}에 {country}에서 심한 폭풍이 있을 것으로 예상합니다.",
        "coat": "이 따뜻한 외투는 {country}에서 왔으며 값은 {price}밖에 안 합니다.",
        "apples": "나는 시장에서 사과 {weight}을 {price}에 샀습니다.",
        "parcel": "고객님의 소포는 무게가 {weight}이고 {date}에 도착할 예정입니다.",
        "meeting": "{country}에서 온 고객과의 회의는 {date} {time:native} 시에 있습니다.",
        "pay": "그는 여기에서 일한 지 {duration}밖에 안 되었고 한 시간에 {price}씩 법니다.",
        "vacancy": "우리는 {language}를 할 수 있고 {date}부터 일할 수 있는 사람을 찾고 있습니다.",
        "course": "{language} 강좌는 {duration} 동안 열리고 수강료는 {price}입니다.",
        "class": "우리 학교에서는 아이 {count:native} 명이 {language}를 배우고 있습니다.",
        "book": "학생들은 {country}에 관한 책을 읽고 그것에 대해 {language}로 이야기했습니다.",
        "exam": "{language} 필기시험은 {date}에 치러집니다.",
        "tablets": "의사는 약을 {duration} 동안 먹고 {date}에 다시 오라고 합니다.",
        "clinic": "새 병원은 {date}에 문을 열고 환자 {count:native} 명을 받을 수 있습니다.",
        "walk": "그녀는 이번 달에 벌써 {distance}를 걸었고 이제 몸무게가 {weight}밖에 안 됩니다.",
        "rice": "손님 {count:native} 명에게 음식을 대접하려면 쌀이 {weight} 필요합니다.",
        "inn": "{weekday}에 우리는 {country}에서 온 가족이 하는 작은 식당에서 {price}짜리 밥을 먹었습니다.",
        "cheese": "{country}에서 만든 이 치즈는 {duration} 동안 숙성해야 합니다.",
        "match": "{country} 팀은 {date} {time:native} 시에 마지막 경기를 합니다.",
        "race": "{country} 자전거 선수들은 {duration} 동안 훈련했고 이제 매일 {distance}를 달립니다.",
        "fans": "{weekday}에 배 한 척이 경기를 보려는 응원단 {count:native} 명을 {country}에 데려갔습니다.",
        "novel": "그 소설은 {language}로 번역되어 {date}부터 판매됩니다.",
        "bridges": "신문에 따르면 {country}에서 다리 {count:native} 개를 짓는 데 {duration} 걸렸습니다.",
        "exhibition": "전시회에서는 {country}의 그림 {count:native} 점을 {date}까지 보여 줍니다.",
        "brother": "우리 형은 {country}에서 {duration} 동안 살고 있으며 {language}를 잘합니다.",
        "wedding": "{date} 결혼식에는 {country}에서 손님 {count:native} 명이 올 예정입니다.",
    },
)


LANGUAGES: dict[str, Language] = {
    "en": ENGLISH,
    "ar": ARABIC,
    "de": GERMAN,
    "es": SPANISH,
    "fr": FRENCH,
    "hi": HINDI,
    "ja": JAPANESE,
    "ko": KOREAN,
    "ru": RUSSIAN,
    "tr": TURKISH,
    "zh": CHINESE,
}
"""Language code (also a Babel locale) → language."""
