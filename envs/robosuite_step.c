/* robosuite's control step in one loop: operational space control of one arm on a fixed base, and MuJoCo's substeps.

The law is that of robosuite 1.5.2 (OperationalSpaceController with pose deltas in the frame of the base, uncoupled, at a
fixed impedance; FixedBaseRobot.control clips), in the order in which robosuite computes it. Three pseudo-inverses by
singular values become Cholesky solutions, which are the same numbers wherever the matrices are regular; where they are
not, the loop stops and says so, and the caller lets robosuite do that substep.

Quaternions are not computed here: robosuite rounds them to single precision, and two roundings that differ would differ
by 1e-7. The caller asks robosuite for the rotation of an action. */

#include <mujoco/mujoco.h>
#include <setjmp.h>
#include <string.h>

#define JOINTS 7
#define FINGERS 4
#define REGULAR 1e-8 /* smallest pivot over its diagonal element: what is lost of 16 digits */

typedef struct {
  int site, base; /* sites that are controlled, and that goals are relative to */
  int joints, fingers;
  int position[JOINTS], velocity[JOINTS], actuator[JOINTS], finger[FINGERS];
  double rest[JOINTS]; /* posture of the null space, rad */
  double kp[6], kd[6];
  double least[3], most[3], centre[3], scale[3], offset[3]; /* position part of an action to metres */
  double goal_position[3], goal_rotation[9];                /* in the frame of the base; a matrix is row by row */
  double speed, command[FINGERS];                           /* what the gripper is told, in [-1, 1] */
  double middle[FINGERS], half[FINGERS];                    /* commands to controls */
} Arm;

static __thread jmp_buf failed;
static __thread char message[1024];

static void on_error(const char* text) {
  strncpy(message, text, sizeof message - 1);
  longjmp(failed, 1);
}

const char* flowpolicy_error(void) { return message; }

/* Lower factor of a symmetric matrix whose rows are `stride` apart; 0 where it is not regular. */
static int factor(const double* matrix, int stride, int n, double* lower) {
  for (int i = 0; i < n; i++)
    for (int j = 0; j <= i; j++) {
      double sum = matrix[i * stride + j];
      for (int k = 0; k < j; k++) sum -= lower[i * n + k] * lower[j * n + k];
      if (j < i) {
        lower[i * n + j] = sum / lower[j * n + j];
      } else {
        if (!(sum > REGULAR * matrix[i * stride + i])) return 0;
        lower[i * n + i] = mju_sqrt(sum);
      }
    }
  return 1;
}

static void solve(const double* lower, int n, const double* right, double* x) {
  for (int i = 0; i < n; i++) {
    x[i] = right[i];
    for (int k = 0; k < i; k++) x[i] -= lower[i * n + k] * x[k];
    x[i] /= lower[i * n + i];
  }
  for (int i = n - 1; i >= 0; i--) {
    for (int k = i + 1; k < n; k++) x[i] -= lower[k * n + i] * x[k];
    x[i] /= lower[i * n + i];
  }
}

static double limited(double value, double least, double most) {
  return value < least ? least : value > most ? most : value;
}

static void set(const mjModel* m, mjData* d, int actuator, double value) {
  const double* range = m->actuator_ctrlrange + 2 * actuator;
  d->ctrl[actuator] = limited(value, range[0], range[1]);
}

/* The goal that an action (position, rotation, gripper) asks for, from where the hand is now. */
static void aim(const mjData* d, Arm* arm, const double* action, const double* turn) {
  const double *hand = d->site_xmat + 9 * arm->site, *base = d->site_xmat + 9 * arm->base;
  double inside[9];
  mju_mulMatTMat(inside, base, hand, 3, 3, 3);
  mju_mulMatMat(arm->goal_rotation, turn, inside, 3, 3, 3);
  for (int r = 0; r < 3; r++) {
    double here = 0, origin = 0;
    for (int k = 0; k < 3; k++) {
      here += base[3 * k + r] * d->site_xpos[3 * arm->site + k];
      origin += base[3 * k + r] * d->site_xpos[3 * arm->base + k];
    }
    const double shift = (limited(action[r], arm->least[r], arm->most[r]) - arm->centre[r]) * arm->scale[r];
    arm->goal_position[r] = here - origin + (shift + arm->offset[r]);
  }
}

/* The fingers close and open by steps: an action is a direction. */
static void grip(Arm* arm, double action) {
  const double step = arm->speed * ((action > 0) - (action < 0));
  for (int i = 0; i < arm->fingers; i++)
    arm->command[i] = limited(arm->command[i] + (i ? step : -step), -1, 1);
}

/* Controls of one substep; 0 where the hand cannot be moved in some direction. */
static int control(const mjModel* m, mjData* d, const Arm* arm) {
  const int n = arm->joints;
  const double *hand = d->site_xmat + 9 * arm->site, *base = d->site_xmat + 9 * arm->base;
  double moving[6] = {0}, wrench[6], J[6 * JOINTS], M[JOINTS * JOINTS], L[JOINTS * JOINTS], lever[3];
  /* The columns and the block of mj_jacSite and mj_fullM that belong to the arm, a chain of joints from a fixed base. */
  mju_sub3(lever, d->site_xpos + 3 * arm->site, d->subtree_com + 3 * m->body_rootid[m->site_bodyid[arm->site]]);
  for (int k = 0; k < n; k++) {
    const double* axis = d->cdof + 6 * arm->velocity[k];
    double swept[3];
    mju_cross(swept, axis, lever);
    for (int r = 0; r < 3; r++) {
      J[r * n + k] = axis[3 + r] + swept[r];
      J[(3 + r) * n + k] = axis[r];
    }
    for (int r = 0; r < 6; r++) moving[r] += J[r * n + k] * d->qvel[arm->velocity[k]];
    const double* row = d->qM + m->dof_Madr[arm->velocity[k]]; /* itself, then its parents */
    for (int i = 0; i <= k; i++) M[k * n + i] = M[i * n + k] = row[k - i];
  }

  double wanted[9];
  mju_mulMatMat(wanted, base, arm->goal_rotation, 3, 3, 3);
  for (int r = 0; r < 3; r++) {
    double place = d->site_xpos[3 * arm->base + r];
    for (int k = 0; k < 3; k++) place += base[3 * r + k] * arm->goal_position[k];
    const int a = (r + 1) % 3, b = (r + 2) % 3;
    double turn = 0; /* half the sum of the cross products of the columns */
    for (int c = 0; c < 3; c++) turn += hand[3 * a + c] * wanted[3 * b + c] - hand[3 * b + c] * wanted[3 * a + c];
    wrench[r] = (place - d->site_xpos[3 * arm->site + r]) * arm->kp[r] - moving[r] * arm->kd[r];
    wrench[3 + r] = 0.5 * turn * arm->kp[3 + r] - moving[3 + r] * arm->kd[3 + r];
  }

  double half[6 * JOINTS], mobility[36], lower[36], part[9], force[6]; /* half = J L^-T, mobility = J M^-1 J^T */
  if (!factor(M, n, n, L)) return 0;
  for (int r = 0; r < 6; r++)
    for (int i = 0; i < n; i++) {
      double sum = J[r * n + i];
      for (int k = 0; k < i; k++) sum -= L[i * n + k] * half[r * n + k];
      half[r * n + i] = sum / L[i * n + i];
    }
  for (int r = 0; r < 6; r++)
    for (int c = 0; c <= r; c++) {
      double sum = 0;
      for (int k = 0; k < n; k++) sum += half[r * n + k] * half[c * n + k];
      mobility[6 * r + c] = mobility[6 * c + r] = sum;
    }
  if (!factor(mobility, 6, 3, part)) return 0;
  solve(part, 3, wrench, force);
  if (!factor(mobility + 21, 6, 3, part)) return 0;
  solve(part, 3, wrench + 3, force + 3);
  if (!factor(mobility, 6, 6, lower)) return 0;

  /* Towards the rest posture, as far as the hand does not notice: M x - J^T mobility^-1 J x. */
  const double stiffness = 10, damping = mju_sqrt(stiffness) * 2;
  double x[JOINTS], noticed[6], taken[6];
  for (int k = 0; k < n; k++)
    x[k] = stiffness * (arm->rest[k] - d->qpos[arm->position[k]]) - damping * d->qvel[arm->velocity[k]];
  mju_mulMatVec(noticed, J, x, 6, n);
  solve(lower, 6, noticed, taken);
  for (int i = 0; i < n; i++) {
    double torque = d->qfrc_bias[arm->velocity[i]];
    for (int r = 0; r < 6; r++) torque += J[r * n + i] * (force[r] - taken[r]);
    for (int k = 0; k < n; k++) torque += M[i * n + k] * x[k];
    set(m, d, arm->actuator[i], torque);
  }
  for (int i = 0; i < arm->fingers; i++) set(m, d, arm->finger[i], arm->middle[i] + arm->half[i] * arm->command[i]);
  return 1;
}

/* Simulate `substeps`; returns how many were done, or -1 where MuJoCo failed (flowpolicy_error).

Where fewer were done, mj_step1 of the next one has been, and its controls are the caller's.

action (7): asks for a new goal in the first substep, turned by turn (3 x 3); NULL keeps the goal. */
int flowpolicy_robosuite_step(const mjModel* m, mjData* d, Arm* arm, const double* action, const double* turn,
                              int substeps) {
  void (*before)(const char*) = mju_user_error;
  volatile int done = 0;
  mju_user_error = on_error;
  if (setjmp(failed)) {
    done = -1;
  } else {
    for (; done < substeps; done++) {
      mj_step1(m, d);
      if (action && done == 0) {
        aim(d, arm, action, turn);
        grip(arm, action[6]);
      }
      if (!control(m, d, arm)) break;
      mj_step2(m, d);
    }
  }
  mju_user_error = before;
  return done;
}

/* The physics alone: substeps under given controls (substeps x m->nu). What a control step is measured against. */
void flowpolicy_physics(const mjModel* m, mjData* d, const double* controls, int substeps) {
  for (int i = 0; i < substeps; i++) {
    mj_step1(m, d);
    mju_copy(d->ctrl, controls + i * m->nu, m->nu);
    mj_step2(m, d);
  }
}
