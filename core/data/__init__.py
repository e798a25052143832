"""Training data: formats, validation with line numbers, tokenised samples, batches, the demo set.

`validation` and `formats` need nothing but the standard library, so the API can check an upload;
`tokens` and `batches` belong to the process that trains.
"""
