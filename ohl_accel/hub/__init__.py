"""Publishing runs on the Hugging Face Hub, and fetching what was published.

`python -m ohl_accel.hub push RUN user/name` and `pull user/name FOLDER` do by hand what `hub.repo=user/name`
does at the end of a run. Only safetensors, JSON, text and pictures go up or come down, no pickle. Tokens are
the client library's business: none is read from a recipe or written anywhere.
"""
