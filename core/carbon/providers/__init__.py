"""Live sources of intensity: thin adapters over httpx behind one port.

Official clients were judged and left out: they drag in pandas, write credentials to the
environment, lack forecasts, or install a top-level package named ``openapi`` or ``core``.
Every answer is checked value by value; what does not fit is refused with a reason, and
`core.carbon.live` then falls back. Tokens go into requests and nowhere else.
"""
