"""What a job imports: heavy libraries where they are used, and those that are put off do all that they ever did."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = (
    *("torchvision", "transformers", "torch._dynamo", "torch._inductor", "sympy", "triton"),
    *(
        "scipy.stats",
        "scipy.signal",
        "matplotlib",
        "pandas",
        "wandb",
        "sklearn",
        "open_clip",
        "timm",
        "krossfuse.report.page",
    ),
)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True).stdout


def test_a_job_imports_no_library_that_it_may_not_need() -> None:
    code = "import json, sys, krossfuse.app.job, krossfuse.app.fuse_and_probe\nprint(json.dumps(list(sys.modules)))"
    assert not set(HEAVY) & set(json.loads(python(code)))


def test_what_was_put_off_works_when_it_is_used() -> None:
    code = """
import sys
from krossfuse.core.lightning import pl
assert "torchvision" not in sys.modules and "transformers" not in sys.modules
from torchmetrics.functional.text.bert import AutoTokenizer
try:
    from torchmetrics.functional.image.arniqa import resnet50, transforms
except ModuleNotFoundError:  # of the oldest torchmetrics
    from torchvision import transforms
    from torchvision.models import resnet50
import torch
model = resnet50()
assert isinstance(model, torch.nn.Module)
assert transforms.Normalize(0.5, 0.5)(torch.ones(3, 2, 2)).eq(1).all()
assert callable(AutoTokenizer.from_pretrained)
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counted:
    torch.ones(2, 3) @ torch.ones(3, 4)
assert counted.get_total_flops() == 48
from torchmetrics.classification import MulticlassAccuracy
accuracy = MulticlassAccuracy(3)
accuracy.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
figure, axes = accuracy.plot()
import matplotlib.axes, matplotlib.figure
assert isinstance(figure, matplotlib.figure.Figure) and isinstance(axes, matplotlib.axes.Axes)
import torchvision, transformers, scipy
assert torchvision.models.resnet50 and transformers.AutoTokenizer and scipy.signal.hilbert

class Twice(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
    def forward(self, x):
        return self.weight * 2 * x
    def training_step(self, batch, index):
        loss = (self(batch) - 4 * batch).square().mean()
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

module = Twice()
trainer = pl.Trainer(max_epochs=20, logger=False, enable_checkpointing=False, accelerator="cpu",
                     enable_progress_bar=False, enable_model_summary=False)
loader = torch.utils.data.DataLoader(torch.ones(4, 1))
# torch 2.6 does not trace what Lightning puts round a step.
compiled = module if torch.__version__.startswith("2.6.") else torch.compile(module, backend="eager")
trainer.fit(compiled, loader)
assert abs(module.weight.item() - 2) < 1e-3, module.weight
print("trained", float(trainer.callback_metrics["loss"]) < 1e-3)
"""
    assert python(code).endswith("trained True\n")
