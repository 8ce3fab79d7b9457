"""One HTTP server for language models, encoders and an index: REST, and OpenAI's endpoints (extra `serve`).

A request goes through `middleware` to one of `routes`, which checks it, hands work to the thread of a model or of the
index (`served`, `worker`), and waits for it (`waiting`). `app.create_app` puts it together.
"""
