"""`accelerate launch -m hbsdk.training ...`: `hbsdk train` for any number of processes."""

from __future__ import annotations

import torch.distributed
import typer

from hbsdk.cli_train import train

if __name__ == "__main__":
    try:
        typer.run(train)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
