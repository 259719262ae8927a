"""``lorada serve``: finished runs behind an OpenAI-compatible HTTP server."""
