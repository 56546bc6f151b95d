package podrules

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// handler is a probe's or a hook's action: exactly one of them is set.
type handler struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

func (r *specRules) validateHandler(h handler, p *field.Path) {
	n := 0
	one := func(name string, set bool, rule func(p *field.Path)) {
		if !set {
			return
		}
		if n++; n > 1 {
			r.Forbidden(p.Child(name), "may not specify more than 1 handler type")
			return
		}
		rule(p.Child(name))
	}
	one("exec", h.exec != nil, func(p *field.Path) {
		if len(h.exec.Command) == 0 {
			r.Required(p.Child("command"), "")
		}
	})
	one("httpGet", h.http != nil, func(p *field.Path) {
		r.Need(p.Child("path"), h.http.Path)
		r.PortOrName(p.Child("port"), h.http.Port)
		check.Among(&r.Faults, p.Child("scheme"), h.http.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
		for _, header := range h.http.HTTPHeaders {
			r.Each(p.Child("httpHeaders"), header.Name, validation.IsHTTPHeaderName(header.Name))
		}
	})
	one("tcpSocket", h.tcp != nil, func(p *field.Path) { r.PortOrName(p.Child("port"), h.tcp.Port) })
	one("grpc", h.grpc != nil, func(p *field.Path) { r.Port(p.Child("port"), h.grpc.Port) })
	one("sleep", h.sleep != nil, func(p *field.Path) {
		if g := r.spec.TerminationGracePeriodSeconds; g != nil && (h.sleep.Seconds < 0 || h.sleep.Seconds > *g) {
			r.Invalid(p, h.sleep.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", *g))
		}
	})
	if n == 0 {
		r.Required(p, "must specify a handler type")
	}
}

func (r *specRules) validateLifecycle(l *corev1.Lifecycle, p *field.Path) {
	if l == nil {
		return
	}
	hook := func(h *corev1.LifecycleHandler, p *field.Path) {
		if h != nil {
			r.validateHandler(handler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep}, p)
		}
	}
	hook(l.PostStart, p.Child("postStart"))
	hook(l.PreStop, p.Child("preStop"))
}

func (r *specRules) validateProbes(c *corev1.Container, p *field.Path) {
	// One success is all that can be asked of a container that is restarted on failure.
	once := func(b *corev1.Probe, p *field.Path) {
		r.validateProbe(b, p)
		if b != nil && b.SuccessThreshold != 1 {
			r.Invalid(p.Child("successThreshold"), b.SuccessThreshold, "must be 1")
		}
	}
	once(c.LivenessProbe, p.Child("livenessProbe"))
	r.validateProbe(c.ReadinessProbe, p.Child("readinessProbe"))
	if d := c.ReadinessProbe; d != nil && d.TerminationGracePeriodSeconds != nil {
		r.Invalid(p.Child("readinessProbe", "terminationGracePeriodSeconds"), d.TerminationGracePeriodSeconds, "must not be set for readinessProbes")
	}
	once(c.StartupProbe, p.Child("startupProbe"))
}

func (r *specRules) validateProbe(b *corev1.Probe, p *field.Path) {
	if b == nil {
		return
	}
	r.validateHandler(handler{exec: b.Exec, http: b.HTTPGet, tcp: b.TCPSocket, grpc: b.GRPC}, p)
	check.AtLeastZero(&r.Faults, p.Child("initialDelaySeconds"), b.InitialDelaySeconds)
	check.AtLeastZero(&r.Faults, p.Child("timeoutSeconds"), b.TimeoutSeconds)
	check.AtLeastZero(&r.Faults, p.Child("periodSeconds"), b.PeriodSeconds)
	check.AtLeastZero(&r.Faults, p.Child("successThreshold"), b.SuccessThreshold)
	check.AtLeastZero(&r.Faults, p.Child("failureThreshold"), b.FailureThreshold)
	if g := b.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		r.Invalid(p.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0")
	}
}
