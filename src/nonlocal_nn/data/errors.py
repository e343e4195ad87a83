"""What can be wrong with a video or an image, in one line that names the file."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FileError", "ImageError", "Problem", "UnavailableError", "VideoError"]


class Problem(NamedTuple):
    """A file (or a line of a list) that cannot be used, and why.

    >>> print(Problem("clips/a.mp4", "the file is empty (0 bytes)"))
    clips/a.mp4: the file is empty (0 bytes)

    A plain tuple of strings, so that data-loader workers and transfers to a device pass it on as it is.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class FileError(ValueError):
    """A file that cannot be used; the text is one line, `path: reason`.

    >>> error = FileError("clips/a.mp4", "no such file")
    >>> print(error)
    clips/a.mp4: no such file
    >>> error.problem
    Problem(path='clips/a.mp4', reason='no such file')
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args: the error survives pickling between processes
        self.path = path
        self.reason = " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"

    @property
    def problem(self) -> Problem:
        """The same as a record to keep."""
        return Problem(self.path, self.reason)


class VideoError(FileError):
    """A video that cannot be decoded.

    >>> print(VideoError("clips/a.mp4", "no such file"))
    clips/a.mp4: no such file
    """


class ImageError(FileError):
    """An image that cannot be decoded.

    >>> print(ImageError("images/a.jpg", "no such file"))
    images/a.jpg: no such file
    """


class UnavailableError(VideoError):
    """A video that cannot be opened for a reason that is not its own, such as too many open files.

    It may open the next time, so nobody remembers it as broken.

    >>> print(UnavailableError("clips/a.mp4", "cannot be opened: Permission denied"))
    clips/a.mp4: cannot be opened: Permission denied
    """
