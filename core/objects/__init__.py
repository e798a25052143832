"""Objects: uploads, checkpoints and results, in a local folder or an S3 bucket, always streamed."""
