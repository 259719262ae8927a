"""``lorada serve``: transformers' server, with requests checked before they reach it."""
