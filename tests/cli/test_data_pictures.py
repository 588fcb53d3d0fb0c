"""``flowpolicy data make --cameras`` and ``data render`` at the command line."""

import h5py
import pytest

from flowpolicy.core.errors import FlowPolicyError

from .conftest import run


@pytest.mark.sim
def test_demonstrations_with_pictures_in_one_go_and_again_from_kept_states(tmp_path, capsys, monkeypatch):
    from flowpolicy.envs import demonstrators, rendered_data

    out = tmp_path / "lift.hdf5"
    command = ["data", "make", "lift", "--episodes", "1", "--workers", "1", "--out", str(out)]
    command += ["--cameras", "robot0_eye_in_hand", "--size", "12", "16"]
    assemble = rendered_data._assemble

    def stop(*_):
        raise FlowPolicyError("stopped")

    monkeypatch.setattr(rendered_data, "_assemble", stop)
    assert run(command) != 0 and not out.exists()
    monkeypatch.setattr(rendered_data, "_assemble", assemble)
    monkeypatch.setattr(demonstrators, "make_demonstrations", None)  # the states are there
    assert run(command) == 0
    with h5py.File(out) as file:
        assert file["data/demo_0/obs/robot0_eye_in_hand_image"].shape[1:] == (12, 16, 3)
        assert "robot0_eye_in_hand_image" not in file["data/demo_0/next_obs"]
    assert [path.name for path in tmp_path.iterdir()] == ["lift.hdf5"]
    assert run(command) != 0
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["make", "toy", "--cameras", "agentview"], "--cameras with toy, of which no pictures are drawn"),
        (["make", "lift", "--cameras", "agentviw"], "Lift has no camera 'agentviw'"),
        (["make", "can", "--cameras", "sideview"], "PickPlaceCan has no camera 'sideview'"),
        (["make", "lift", "--cameras", "agentview", "agentview"], "every camera once"),
        (["render", "x.hdf5", "--size", "1", "2", "3"], "--size 1 2 3"),
        (["make", "lift", "--cameras", "agentview", "--size", "5000"], "pictures of 5000 x 5000"),
        (["render", "x.hdf5"], "x.hdf5 is not a file"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_is_made(tmp_path, capsys, words, said):
    assert run(["data", *words, "--out", str(tmp_path / "out.hdf5")]) != 0
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
