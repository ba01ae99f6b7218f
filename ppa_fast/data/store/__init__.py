"""The token store: writes text as rows of token ids on disk and reads them back."""
