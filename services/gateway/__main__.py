"""`python -m services.gateway`: one gateway; several may run side by side."""

from perdure.bus.service import serve
from services.gateway.service import Gateway

if __name__ == "__main__":
    serve(Gateway())
