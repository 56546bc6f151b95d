package podrules

import (
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// given names a field and says whether it is set.
type given struct {
	name string
	set  bool
}

// refuse forbids every field of the list that is set.
func (r *specRules) refuse(p *field.Path, why string, fields ...given) {
	for _, f := range fields {
		if f.set {
			r.Forbidden(p.Child(f.name), why)
		}
	}
}

func (r *specRules) validateContainers(p *field.Path) {
	s := r.spec
	names := check.Seen[string]{}
	if len(s.Containers) == 0 {
		r.Required(p.Child("containers"), "")
	}
	for i := range s.Containers {
		c, at := &s.Containers[i], p.Child("containers").Index(i)
		r.validateContainer(c, at)
		if names.Again(c.Name) {
			r.Duplicate(at.Child("name"), c.Name)
		}
		r.validateLifecycle(c.Lifecycle, at.Child("lifecycle"))
		r.validateProbes(c, at)
		r.validateRestart(c, false, at)
	}
	r.hostPorts(s.Containers, p.Child("containers"))
	for i := range s.InitContainers {
		r.validateInitContainer(i, names, p.Child("initContainers"))
	}
	r.validateEphemeral(p.Child("ephemeralContainers"), names)
}

func (r *specRules) validateInitContainer(i int, names check.Seen[string], p *field.Path) {
	c, at := &r.spec.InitContainers[i], p.Index(i)
	r.validateContainer(c, at)
	r.validateRestart(c, true, at)
	if names[c.Name] {
		r.Duplicate(at.Child("name"), c.Name)
	} else if c.Name != "" {
		names[c.Name] = true
	}
	r.hostPorts(r.spec.InitContainers[i:i+1], p) // they run one by one
	if IsSidecar(c) {
		r.validateLifecycle(c.Lifecycle, at.Child("lifecycle"))
		r.validateProbes(c, at)
		return
	}
	r.refuse(at, "may not be set for init containers without restartPolicy=Always", given{"lifecycle", c.Lifecycle != nil},
		given{"livenessProbe", c.LivenessProbe != nil}, given{"readinessProbe", c.ReadinessProbe != nil}, given{"startupProbe", c.StartupProbe != nil})
	for j, policy := range c.ResizePolicy {
		if policy.RestartPolicy == corev1.RestartContainer {
			r.Invalid(at.Child("resizePolicy").Index(j).Child("restartPolicy"), policy.RestartPolicy,
				"must not be set to 'RestartContainer' for non-sidecar initContainers")
		}
	}
}

// IsSidecar reports an init container that runs as long as the pod.
func IsSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// ephemeralFields are what an ephemeral container may say; it has no duties that others rely on.
var ephemeralFields = map[string]bool{
	"Name": true, "Image": true, "Command": true, "Args": true, "WorkingDir": true, "EnvFrom": true, "Env": true,
	"VolumeMounts": true, "VolumeDevices": true, "TerminationMessagePath": true, "TerminationMessagePolicy": true,
	"ImagePullPolicy": true, "SecurityContext": true, "Stdin": true, "StdinOnce": true, "TTY": true,
}

func (r *specRules) validateEphemeral(p *field.Path, names check.Seen[string]) {
	const refused = "cannot be set for an Ephemeral Container"
	targets := map[string]bool{}
	for _, c := range r.spec.Containers {
		targets[c.Name] = true
	}
	for _, c := range r.spec.InitContainers {
		targets[c.Name] = true
	}
	for i := range r.spec.EphemeralContainers {
		e, at := &r.spec.EphemeralContainers[i], p.Index(i)
		c := (*corev1.Container)(&e.EphemeralContainerCommon)
		r.validateContainer(c, at)
		r.trimmedImage(c, at)
		if names.Again(c.Name) {
			r.Duplicate(at.Child("name"), c.Name)
		}
		if e.TargetContainerName != "" && !targets[e.TargetContainerName] {
			r.NotFound(at.Child("targetContainerName"), e.TargetContainerName)
		}
		fields := reflect.ValueOf(e.EphemeralContainerCommon)
		for j := range fields.NumField() {
			name := fields.Type().Field(j).Name
			if !ephemeralFields[name] && !fields.Field(j).IsZero() {
				r.Forbidden(at.Child(strings.ToLower(name[:1])+name[1:]), refused)
			}
		}
		for j, m := range c.VolumeMounts {
			r.refuse(at.Child("volumeMounts").Index(j), refused, given{"subPath", m.SubPath != ""}, given{"subPathExpr", m.SubPathExpr != ""})
		}
	}
}

// trimmedImage: templates may hold an image of spaces, which something fills in later; pods may not.
func (r *specRules) trimmedImage(c *corev1.Container, p *field.Path) {
	if strings.TrimSpace(c.Image) != c.Image {
		r.Invalid(p.Child("image"), c.Image, "must not have leading or trailing whitespace")
	}
}

// validateContainer holds what is true of a container in any list.
func (r *specRules) validateContainer(c *corev1.Container, p *field.Path) {
	r.NeedName(p.Child("name"), c.Name, validation.IsDNS1123Label)
	r.Need(p.Child("image"), c.Image)
	if c.TerminationMessagePolicy == "" {
		r.Required(p.Child("terminationMessagePolicy"), "")
	} else {
		check.Listed(&r.Faults, p.Child("terminationMessagePolicy"), c.TerminationMessagePolicy,
			corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	}
	r.validatePorts(c.Ports, p.Child("ports"))
	r.validateEnv(c, p)
	r.validateMounts(c, p)
	check.OneOf(&r.Faults, p.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	r.Add(ValidateResources(&c.Resources, r.claims, p.Child("resources")))
	resized := check.Seen[corev1.ResourceName]{}
	for i, policy := range c.ResizePolicy {
		at := p.Child("resizePolicy")
		if resized.Again(policy.ResourceName) {
			r.Duplicate(at.Index(i), policy.ResourceName)
		}
		check.OneOf(&r.Faults, at, policy.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)
		check.OneOf(&r.Faults, at, policy.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)
		if r.spec.RestartPolicy == corev1.RestartPolicyNever && policy.RestartPolicy != corev1.NotRequired {
			r.Invalid(at, policy.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'")
		}
	}
	r.validateSecurity(c.SecurityContext, p.Child("securityContext"))
}

func (r *specRules) validatePorts(ports []corev1.ContainerPort, p *field.Path) {
	names := check.Seen[string]{}
	for i, port := range ports {
		at := p.Index(i)
		if port.Name != "" {
			if msgs := validation.IsValidPortName(port.Name); len(msgs) > 0 {
				r.Each(at.Child("name"), port.Name, msgs)
			} else if names.Again(port.Name) {
				r.Duplicate(at.Child("name"), port.Name)
			}
		}
		if port.ContainerPort == 0 {
			r.Required(at.Child("containerPort"), "")
		} else {
			r.Port(at.Child("containerPort"), port.ContainerPort)
		}
		if port.HostPort != 0 {
			r.Port(at.Child("hostPort"), port.HostPort)
		}
		check.OneOf(&r.Faults, at.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
	}
}

// hostPorts: what runs at the same time cannot bind one port of the host twice.
func (r *specRules) hostPorts(list []corev1.Container, p *field.Path) {
	seen := check.Seen[string]{}
	for i := range list {
		for j, port := range list[i].Ports {
			if port.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
			if seen.Again(key) {
				r.Duplicate(p.Index(i).Child("ports").Index(j).Child("hostPort"), key)
			}
		}
	}
}

// validateRestart holds the rules of a container's own restart policy (KEP-5307). Of one that starts the pod and has no
// policy no rule is looked into.
func (r *specRules) validateRestart(c *corev1.Container, starts bool, p *field.Path) {
	if c.RestartPolicy != nil {
		check.Among(&r.Faults, p.Child("restartPolicy"), *c.RestartPolicy,
			corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)
	} else if len(c.RestartPolicyRules) > 0 {
		r.Required(p.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
		if starts {
			return
		}
	}
	at := p.Child("restartPolicyRules")
	if n := len(c.RestartPolicyRules); n > 20 {
		r.TooMany(at, n, 20)
	}
	for i, rule := range c.RestartPolicyRules {
		at := at.Index(i)
		check.Among(&r.Faults, at.Child("action"), rule.Action, corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)
		if rule.ExitCodes == nil {
			r.Required(at.Child("exitCodes"), "must be specified")
			continue
		}
		check.Among(&r.Faults, at.Child("exitCodes", "operator"), rule.ExitCodes.Operator,
			corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)
		if n := len(rule.ExitCodes.Values); n > 255 {
			r.TooMany(at.Child("exitCodes", "values"), n, 255)
		}
	}
}
