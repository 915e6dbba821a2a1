"""`python -m services.console`: the page for people; several may run side by side."""

from perdure.bus.service import serve
from services.console.service import Console

if __name__ == "__main__":
    serve(Console())
