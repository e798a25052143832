"""The job engine: the row is the truth, a message is a nudge.

``lifecycle``  states, edges and their event messages as data; pure
``records``    what crosses this room's border: frozen records
``uploads``    files in parts: their records and what makes them complete; pure
``ids``        object ids and fine-tuned model names
``tables``     the mapped classes; ``migrations/`` builds the same schema
``store``      every query
``service``    the use cases, for the API and for the worker
``keys``       API keys
``database``   engines and transactions for a URL
"""
