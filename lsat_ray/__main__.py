"""`python -m lsat_ray`: the same as the command `lsat-ray`."""

from lsat_ray.cli.app import app

if __name__ == "__main__":
    app(prog_name="lsat-ray")
