"""BYOL in a training loop of one's own: no command, no run folder.

python examples/own_loop.py
"""

import torch

from selfsight import views
from selfsight.data.synthetic import synthetic
from selfsight.encoders import create_encoder
from selfsight.export import save_model
from selfsight.methods.base import Batch, Clock, Key
from selfsight.methods.byol import BYOL

SIZE, BATCH, EPOCHS = 32, 32, 3

images, _, _ = synthetic(64, size=SIZE)
torch.manual_seed(0)
encoder = create_encoder("resnet18", size=SIZE)
method = BYOL(encoder, hidden=512, momentum=0.99)
# The paper's views are written for 224 pixels.
method.views = [view.scaled(SIZE) for view in method.views]
optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)

per_epoch = len(images) // BATCH
for step in range(EPOCHS * per_epoch):
    clock = Clock(step, total=EPOCHS * per_epoch, per_epoch=per_epoch)
    if step % per_epoch == 0:
        order = torch.randperm(len(images))
    place = step % per_epoch * BATCH
    index = order[place : place + BATCH]
    crops = views.apply(images[index.numpy()], method.views, position=step)
    batch = Batch(
        views=crops,
        index=index,
        # Only methods that compare places in the image read the boxes.
        boxes=torch.zeros(BATCH, len(crops), 4),
        key=Key(seed=0, step=step, position=step * BATCH + torch.arange(BATCH)),
    )
    out = method(batch, clock)
    out.loss.backward()
    method.after_backward(clock)
    optimizer.step()
    method.after_step(out.carry, clock)  # moves BYOL's teacher
    optimizer.zero_grad()
    print(f"step {step}  loss {out.loss.item():.3f}")

save_model(method.product, "own_model", size=SIZE)
