"""The demo's own prompts: about 1300 tokens each, so that the KV cache that moves is some 30 MB, with an answer
in the text.
"""

_CRATERS = (
    ("Tycho", 85, "bright rays that cross half of the near side"),
    ("Copernicus", 96, "terraced walls and a group of central peaks"),
    ("Plato", 101, "a floor as dark as the plains around it"),
    ("Clavius", 231, "an arc of smaller craters on its floor"),
    ("Aristarchus", 40, "the brightest floor of all large craters"),
    ("Kepler", 31, "a ray system in the ocean of storms"),
    ("Langrenus", 132, "walls that step down for nine kilometres"),
    ("Petavius", 184, "a long straight cleft from its peak to its wall"),
)


def _notebook(author: str, count: int, question: str) -> str:
    lines = [f"These are the notes that {author} made at the telescope, one crater a night."]
    for night in range(1, count + 1):
        name, width, sight = _CRATERS[(night * 5 + len(author)) % len(_CRATERS)]
        lines.append(f"Night {night}: {name}, {width} km wide, shows {sight}; seeing {1 + night * 7 % 5} of 5.")
    lines.append(question)
    return "\n".join(lines)


DEFAULT_PROMPTS = (
    _notebook("Ada", 42, "Using these notes, describe the crater Copernicus in two sentences."),
    _notebook("Giovanni", 42, "Which crater in these notes is the widest, and what does it show?"),
    _notebook("Caroline", 42, "Name three craters from these notes and say what each of them shows."),
)
