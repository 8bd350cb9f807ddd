"""The callbacks in the real trainers of Hugging Face and Lightning."""

import os

import pandas as pd
import pytest
import torch
from torch import nn


def imported(name: str):
    """A library that is not installed, or cannot be imported beside this build of PyTorch, skips its tests."""
    try:
        return pytest.importorskip(name, reason=f"{name} is not installed")
    except (RuntimeError, ImportError) as error:
        pytest.skip(f"{name} cannot be imported here: {' '.join(str(error).split())[:200]}")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(30, 24), nn.Linear(24, 12)

    def forward(self, x, labels=None):
        out = self.last(torch.relu(self.first(x)))
        return {"loss": nn.functional.cross_entropy(out, labels), "logits": out} if labels is not None else out


def examples(n: int = 64) -> list[dict]:
    torch.manual_seed(0)
    return [{"x": torch.randn(30), "labels": torch.randint(0, 12, ())} for _ in range(n)]


# -- Hugging Face ---------------------------------------------------------------------------------------------------------


def hugging_face(folder, callback, steps: int = 12, model: nn.Module | None = None, resume: bool = False):
    transformers = imported("transformers")
    try:
        arguments = transformers.TrainingArguments(
            str(folder), max_steps=steps, per_device_train_batch_size=8, save_steps=6, report_to=[], use_cpu=True,
            disable_tqdm=True, logging_steps=100, save_total_limit=2,
        )  # fmt: skip
        trainer = transformers.Trainer(model or Net(), arguments, train_dataset=examples(), callbacks=[callback])
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"transformers' Trainer cannot be imported here: {' '.join(str(error).split())[:200]}")
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


@pytest.fixture
def callback_of_hf():
    imported("transformers")
    from grokutils.integrations.huggingface import MonitorCallback

    return MonitorCallback


def test_hugging_faces_trainer_measures_by_its_own_steps(tmp_path, callback_of_hf):
    log = tmp_path / "alpha.jsonl"
    callback = callback_of_hf(every=4, shuffles=1, log=log)
    hugging_face(tmp_path / "out", callback)
    assert callback.monitor.history.step.tolist() == [4, 4, 8, 8, 12, 12]
    assert callback.monitor.history.layer.tolist() == ["first", "last"] * 3
    again = callback_of_hf(every=4, shuffles=1, log=log)
    hugging_face(tmp_path / "out", again, steps=20, resume=True)
    assert again.monitor.history.step.unique().tolist() == [4, 8, 12, 16, 20]
    assert len(pd.read_json(log, lines=True)) == 10


def test_hugging_faces_trainer_is_stopped(tmp_path, callback_of_hf):
    callback = callback_of_hf(every=1, shuffles=1, stop_when=lambda history: history.step.max() >= 3)
    trainer = hugging_face(tmp_path / "out", callback)
    assert trainer.state.global_step == 3


class Bare(nn.Module):
    """No weight matrices."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(30))

    def forward(self, x, labels=None):
        return {"loss": (self.scale * x).square().mean(), "logits": x}


def test_hugging_face_and_a_model_without_matrices(tmp_path, callback_of_hf):
    with pytest.raises(ValueError, match="must hold a weight matrix"):
        hugging_face(tmp_path / "out", callback_of_hf(every=1, log=tmp_path / "x.jsonl"), model=Bare())
    assert not (tmp_path / "x.jsonl").exists()


# -- Lightning ------------------------------------------------------------------------------------------------------------


def fit(folder, callback, steps: int = 12, net: nn.Module | None = None, checkpoint=None, accumulate: int = 1):
    lightning = imported("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net or Net()

        def training_step(self, batch, index):
            return self.net(batch["x"], batch["labels"])["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    from lightning.pytorch.loggers import CSVLogger

    trainer = lightning.Trainer(
        max_steps=steps, callbacks=[callback], logger=CSVLogger(str(folder)), accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=accumulate, log_every_n_steps=1, enable_checkpointing=True,
        default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(examples(), batch_size=8), ckpt_path=checkpoint)
    return trainer


@pytest.fixture
def callback_of_lightning():
    imported("lightning.pytorch")
    from grokutils.integrations.lightning import MonitorCallback

    return MonitorCallback


@pytest.mark.filterwarnings("ignore")
def test_lightnings_trainer_measures_by_its_own_steps(tmp_path, callback_of_lightning):
    log = tmp_path / "alpha.jsonl"
    callback = callback_of_lightning(every=4, shuffles=1, log=log, scalars=("alpha",))
    trainer = fit(tmp_path, callback, accumulate=2)
    assert callback.monitor.history.step.tolist() == [4, 4, 8, 8, 12, 12]
    assert callback.monitor.history.layer.tolist() == ["net.first", "net.last"] * 3
    logged = pd.read_csv(os.path.join(trainer.logger.log_dir, "metrics.csv"))
    assert logged["spectra/net.first/alpha"].notna().sum() == 3
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = callback_of_lightning(every=4, shuffles=1, log=log, loggers=False)
    fit(tmp_path, again, steps=20, checkpoint=str(tmp_path / "x.ckpt"), accumulate=2)
    assert again.monitor.history.step.unique().tolist() == [4, 8, 12, 16, 20]


@pytest.mark.filterwarnings("ignore")
def test_lightnings_trainer_is_stopped(tmp_path, callback_of_lightning):
    callback = callback_of_lightning(every=1, shuffles=1, stop_when=lambda history: history.step.max() >= 3)
    assert fit(tmp_path, callback).global_step == 3


@pytest.mark.filterwarnings("ignore")
def test_lightning_and_a_model_without_matrices(tmp_path, callback_of_lightning):
    with pytest.raises(ValueError, match="must hold a weight matrix"):
        fit(tmp_path, callback_of_lightning(every=1), net=Bare())
