"""The server behind `edgeship-runtime serve`: OpenAI's and Ollama's protocols over artifacts on this machine.

`serve.py` starts it, `app.py` routes, `scheduler.py` gives the engine to one request at a time.
"""
