"""A store in the browser: an ASGI application that shows it."""

try:
    from messagedb_sa.viewer._application import viewer
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("jinja2", "starlette"):
        raise
    raise ModuleNotFoundError(
        f'the viewer needs {error.name}, which is not installed: pip install "messagedb-sa[web]"', name=error.name
    ) from error

__all__ = ["viewer"]
