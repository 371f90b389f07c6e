"""How a thing that has several vectors stands in a prompt. Read without torch."""


def words_of(word: str, count: int) -> list[str]:
    """The words that stand together for one thing when it has `count` vectors: zwx, zwx1, zwx2, ..."""
    return [word, *(f"{word}{i}" for i in range(1, count))]
