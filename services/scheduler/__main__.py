"""`python -m services.scheduler`: one scheduler; several may run side by side."""

from perdure.bus.service import serve
from services.scheduler.service import Scheduler

if __name__ == "__main__":
    serve(Scheduler())
