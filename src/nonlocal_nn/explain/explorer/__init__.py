"""The explorer: a capture as one HTML file to click in. Its scripts and style are in `page/`."""

from nonlocal_nn.explain.explorer.write import write_explorer

__all__ = ["write_explorer"]
