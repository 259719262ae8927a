"""Numbers of JSON that remember how a file writes them: a model learns the text as it stands."""


class WrittenFloat(float):
    """A number of a JSON file that remembers how it is written there, such as 0.10."""

    written: str

    def __new__(cls, text: str) -> "WrittenFloat":
        """The number that a text of digits is."""
        number = super().__new__(cls, text)
        number.written = text
        return number


def parse_number(text: str) -> float:
    """A number of JSON; it remembers how it is written if Python would write it in another way."""
    number = float(text)
    if repr(number) == text:
        return number
    return WrittenFloat(text)
