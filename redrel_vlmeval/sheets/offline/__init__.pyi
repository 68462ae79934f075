from .html import encoded as encoded, render as render
