"""Files that somebody else wrote, or that a person may have edited: JSON, safetensors, PyTorch,
vocabularies.

Nothing in them is ever executed. An error of a library about such a file becomes one sentence, a
`UserError` with the file, the field in it and the remedy.
"""
