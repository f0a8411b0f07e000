"""The embedded corpus: real multilingual parallel text from the Unicode CLDR."""
