"""Pictures: upright, the same pixels as robosuite's own where asked for, and nothing seen left out."""

import dataclasses

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.spec import ImageSpec, RenderSpec
from flowpolicy.envs import camera_renderer, find_env
from flowpolicy.envs.camera_renderer import AS_ROBOSUITE, FAST, CameraRenderer, RenderSettings, visible
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv, SceneCamera, import_robosuite

CAMERAS = (SceneCamera("agentview", 64, 48), SceneCamera("robot0_eye_in_hand", 32, 32))


@pytest.fixture(scope="module")
def lift():
    env = RobosuiteEnv.create(RobosuiteConfig("Lift", cameras=CAMERAS))
    env.reset(3)
    return env


def renderer(env, settings=FAST):
    return CameraRenderer(env.sim_env.sim.model._model, env.sim_env.sim.data._data, settings)


@pytest.mark.sim
def test_pixels_are_those_of_robosuites_own_camera_observations(lift):
    kwargs = {**RobosuiteConfig("Lift").env_args()["env_kwargs"], "camera_names": ["agentview", "robot0_eye_in_hand"]}
    kwargs |= {"has_offscreen_renderer": True, "use_camera_obs": True, "camera_heights": 32, "camera_widths": 48}
    own = import_robosuite().make("Lift", **kwargs, seed=0)
    own.reset()
    own.sim.set_state_from_flattened(lift.state())
    own.sim.forward()
    for _ in range(2):  # whoever draws last does not disturb the other
        observed = own._get_observations(force_update=True)
        drawn = renderer(lift, AS_ROBOSUITE)
        for name in kwargs["camera_names"]:
            assert np.array_equal(drawn.draw(name, 32, 48), observed[f"{name}_image"][::-1])


@pytest.mark.sim
def test_what_is_outside_the_picture_is_left_out_and_no_pixel_changes(lift):
    drawn, whole = renderer(lift), renderer(lift)
    whole.culls = False
    model, data = lift.sim_env.sim.model._model, lift.sim_env.sim.data._data
    before = model.geom_group.copy()
    random = np.random.default_rng(0)
    for number in range(3):
        lift.reset(number)
        for _ in range(4):
            lift.step(random.uniform(-1, 1, 7))
        for name in ("agentview", "robot0_eye_in_hand", "sideview"):
            assert np.array_equal(drawn.draw(name, 40, 60), whole.draw(name, 40, 60))
    assert np.array_equal(model.geom_group, before)
    assert visible(model, data, model.camera("robot0_eye_in_hand").id, 1.0).sum() < model.ngeom / 2
    assert not renderer(lift, RenderSettings(reflections=True)).culls  # a mirror shows what is outside


@pytest.mark.sim
def test_looking_changes_nothing_and_shows_the_state_that_a_file_would_hold(lift):
    """MuJoCo's positions of bodies lag a substep behind the state; a stored state is drawn without that."""
    actions, ends = np.random.default_rng(1).uniform(-1, 1, (4, 7)), []
    for looking in (False, True):
        lift.reset(5)
        for action in actions:
            lift.step(action)
            pictures = lift.look() if looking else {}
        ends.append(lift.state())
    assert np.array_equal(*ends)
    lift.put(ends[0])
    again = lift.look()
    assert all(np.array_equal(picture, again[key]) for key, picture in pictures.items())


@pytest.mark.sim
def test_a_kept_model_plays_what_a_compiled_one_plays(lift):
    """Comparing the text of a model instead of compiling it changes no bit of the states.

    Observations may be a substep apart: robosuite samples them by a clock of sums that a compilation starts anew.
    """
    lift.reset(2)
    xml, state, actions = lift.model_xml(), lift.state(), np.random.default_rng(3).uniform(-1, 1, (5, 7))
    env, ends = RobosuiteEnv.create(RobosuiteConfig("Lift")), []
    for seed in range(3):
        model = env.sim_env.sim.model
        env.load(xml, state)
        assert (env.sim_env.sim.model is model) == (seed > 0)
        for action in actions:
            env.step(action)
        ends.append(env.state())
        env.reset_from(seed)
        env.step(actions[0])
    assert all(np.array_equal(end, ends[0]) for end in ends[1:])


@pytest.mark.sim
def test_pictures_are_upright_with_the_red_cube_where_it_is(lift):
    """The arm comes from above in the view from the front; the cube lies where the camera's geometry says."""
    lift.reset(3)
    model, data = lift.sim_env.sim.model._model, lift.sim_env.sim.data._data
    picture = lift.look()["agentview_image"]
    assert picture.shape == (64, 48, 3) and picture.dtype == np.uint8
    red = np.argwhere((picture[..., 0] > 90) & (picture[..., 1:].max(-1) < 0.6 * picture[..., 0])).mean(0)
    camera = model.camera("agentview").id
    cube = data.body("cube_main").xpos - data.cam_xpos[camera]
    x, y, z = data.cam_xmat[camera].reshape(3, 3).T @ cube
    focal = 32 / np.tan(np.radians(model.cam_fovy[camera]) / 2)
    assert np.allclose(red, [31.5 + focal * y / z, 23.5 - focal * x / z], atol=2.5)


@pytest.mark.sim
def test_one_set_of_meshes_for_equal_models_and_any_size(lift):
    camera_renderer._buffers.clear()
    first, second = renderer(lift), renderer(lift)
    one = first.draw("agentview", 84, 84)
    first.draw("agentview", 200, 100)
    assert np.array_equal(second.draw("agentview", 84, 84), one)
    assert len(camera_renderer._buffers) == 1


@pytest.mark.sim
@pytest.mark.parametrize("task", ["Lift", "PickPlaceCan"])
def test_the_spec_says_what_the_scene_holds(task):
    env = RobosuiteEnv.create(RobosuiteConfig(task))
    model = env.sim_env.sim.model._model
    names = [model.camera(number).name for number in range(model.ncam)]
    for name, image in RobosuiteConfig(task, cameras=tuple(map(SceneCamera, names))).images().items():
        camera = model.camera(image.camera).id
        assert name == f"{image.camera}_image" and image.fov_deg == model.cam_fovy[camera]
        assert image.mount == model.body(model.cam_bodyid[camera]).name
    with pytest.raises(ConfigError, match="has no camera 'agentviw'"):
        renderer(env).draw("agentviw", 8, 8)


def test_settings_go_into_the_spec_and_come_back():
    for settings in (FAST, AS_ROBOSUITE, RenderSettings(geoms="collision", msaa=2)):
        assert RenderSettings.of(settings.spec()) == settings
    assert RenderSettings.of(None) == RenderSettings.of(RenderSpec()) == FAST
    config = RobosuiteConfig("Lift", cameras=CAMERAS, render=AS_ROBOSUITE)
    found = find_env("robosuite/Lift", config.spec().images)
    assert found == config
    assert dataclasses.replace(found, render=FAST) == find_env("lift").seeing(config.images(), FAST)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images: {"front": images["agentview_image"]}, "no camera of Lift takes the pictures 'front'"),
        (lambda images: {"x_image": images["agentview_image"]}, "Lift has no camera 'x'"),
        (
            lambda images: {"agentview_image": ImageSpec((3, 8, 8), channels="first")},
            r"no camera of Lift takes the pictures 'agentview_image' of shape \(3, 8, 8\)",
        ),
    ],
)
def test_pictures_that_no_camera_takes_are_refused(change, words):
    images = RobosuiteConfig("Lift", cameras=CAMERAS).images()
    with pytest.raises(ConfigError, match=words):
        find_env("lift", change(images))


def test_an_environment_without_cameras_is_refused():
    with pytest.raises(ConfigError, match="toy takes no pictures agentview_image"):
        find_env("toy", RobosuiteConfig("Lift", cameras=CAMERAS).images())
    with pytest.raises(ConfigError, match="no camera 'sideview'"):
        RobosuiteConfig("PickPlaceCan", cameras=(SceneCamera("sideview"),)).spec()
    with pytest.raises(ConfigError, match="0 x 84"):
        SceneCamera("agentview", 0)
