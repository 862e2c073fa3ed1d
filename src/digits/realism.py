"""How real the rendered digits are: `python src realism SCRIPT HANDWRITING.npz`.

Fonts and params.yaml's way of drawing enter, with real handwriting that the project does not
ship; the accuracy leaves with which a net trained on rendered digits alone reads it. The real
digits are scored once, after training: they choose nothing here.
"""
