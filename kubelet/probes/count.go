package probes

import corev1 "k8s.io/api/core/v1"

// Result is the outcome of a probe, either of one run or of the whole count.
type Result uint8

const (
	Unknown Result = iota // nothing has been decided yet
	Passed
	Failed
)

func (r Result) String() string {
	switch r {
	case Passed:
		return "success"
	case Failed:
		return "failure"
	}
	return "unknown"
}

// Kind is one of the three questions a probe answers.
type Kind uint8

const (
	Startup   Kind = iota // has the container finished starting?
	Liveness              // is it still worth keeping?
	Readiness             // may it receive traffic?
)

// String is the word that users see in events.
func (k Kind) String() string {
	switch k {
	case Startup:
		return "Startup"
	case Liveness:
		return "Liveness"
	}
	return "Readiness"
}

// Count is the memory of one probe of one container: runs of equal outcomes and
// the verdict that they have led to.
//
// Invariants: run ≥ 1 once something was observed; Held implies that no further
// outcome changes the verdict.
type Count struct {
	Verdict Result // what the rest of the kubelet acts on
	Held    bool   // decided for the life of this container
	last    Result
	run     int32
}

// Begin is the count of a new container. Source: Kubernetes API reference,
// "Probe v1 core": readiness counts as failed before its first success, liveness
// as passed, startup as undecided.
func Begin(kind Kind) Count {
	switch kind {
	case Readiness:
		return Count{Verdict: Failed}
	case Liveness:
		return Count{Verdict: Passed}
	}
	return Count{}
}

// Observe adds one outcome and returns the next count. A liveness probe that has
// failed and a startup probe that was decided hold until there is a new container.
func (c Count) Observe(kind Kind, outcome Result, spec *corev1.Probe) Count {
	if c.Held || outcome == Unknown {
		return c
	}
	if c.last == outcome {
		c.run++
	} else {
		c.last, c.run = outcome, 1
	}
	if outcome == Failed && c.run < atLeast(spec.FailureThreshold, 3) ||
		outcome == Passed && c.run < atLeast(spec.SuccessThreshold, 1) {
		return c
	}
	c.Verdict = outcome
	c.Held = kind == Startup || kind == Liveness && outcome == Failed
	return c
}

// atLeast stands in for API defaulting: static pods and old objects may come without it.
func atLeast(n, otherwise int32) int32 {
	if n <= 0 {
		return otherwise
	}
	return n
}
