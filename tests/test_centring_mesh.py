"""Centred attention on eight devices, however they are laid out: the losses of one."""

import pytest
from test_mesh import check_same, train_cases

MESHES = [dict(data=8), dict(data=2, fsdp=2, tensor=2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "language"])
def test_one_device_equals_eight(kind):
    """Of texts with the segments of packed documents."""
    common = dict(kind=kind, depth=dict(solver="euler"), model=dict(centre=1.0))
    cases = [dict(mesh=mesh, **common) for mesh in MESHES]
    one, *others = train_cases([dict(devices=1, **common), *cases])
    for found in others:
        check_same(found["losses"], one["losses"])
        assert found["kept"]
