"""Publishing runs on the Hugging Face Hub, and downloading published ones.

`hub.repo=user/name` publishes a run at its end; `python -m ohl_accel.hub push RUN user/name` does so by hand, and
`pull user/name FOLDER` downloads it. Only safetensors, JSON, text and images are transferred, never pickles. Tokens
are left to the client library: none is read from a recipe or written anywhere.
"""
