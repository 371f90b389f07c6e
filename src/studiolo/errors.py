"""The one error a user meets when the input, not the program, is wrong."""

from __future__ import annotations


class StudioloError(Exception):
    """Bad input, told in three parts: what was wrong, where, and what to do about it.

    Args:
        message: what was wrong, one sentence.
        where: the file, key or option at fault.
        remedy: what to do, in the imperative.
    """

    def __init__(self, message: str, *, where: object = None, remedy: str | None = None) -> None:
        super().__init__(message, where, remedy)
        self.message = message
        self.where = None if where is None else str(where)
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.message if self.where is None else f"{self.where}: {self.message}"
        return text if self.remedy is None else f"{text}\n{self.remedy}"


class NotFoundError(StudioloError):
    """Nothing here has that name, or it is somebody else's, which is told in the same words (HTTP 404)."""


class ConflictError(StudioloError):
    """What is asked for does not fit what is there now (HTTP 409)."""


class TooLargeError(StudioloError):
    """More than is taken (HTTP 413)."""
