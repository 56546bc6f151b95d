package podrules

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

func (r *specRules) validateContainers(p *field.Path) {
	s := r.spec
	names := check.Seen[string]{}
	named := func(name string, at *field.Path) {
		if name != "" && names.Again(name) {
			r.Duplicate(at.Child("name"), name)
		}
	}
	if len(s.Containers) == 0 {
		r.Required(p.Child("containers"), "")
	}
	hostPorts := check.Seen[string]{}
	for i := range s.Containers {
		c, at := &s.Containers[i], p.Child("containers").Index(i)
		r.validateContainer(c, at)
		named(c.Name, at)
		r.validateLifecycle(c.Lifecycle, at.Child("lifecycle"))
		r.validateProbes(c, at)
		r.validateRestart(c, at)
		r.hostPorts(c, hostPorts, at)
		if r.pod && strings.TrimSpace(c.Image) != c.Image {
			r.Invalid(at.Child("image"), c.Image, "must not have leading or trailing whitespace")
		}
	}
	for i := range s.InitContainers {
		c, at := &s.InitContainers[i], p.Child("initContainers").Index(i)
		r.validateContainer(c, at)
		named(c.Name, at)
		r.validateRestart(c, at)
		r.hostPorts(c, check.Seen[string]{}, at)
		if r.pod && strings.TrimSpace(c.Image) != c.Image {
			r.Invalid(at.Child("image"), c.Image, "must not have leading or trailing whitespace")
		}
		if IsSidecar(c) {
			r.validateLifecycle(c.Lifecycle, at.Child("lifecycle"))
			r.validateProbes(c, at)
			continue
		}
		for name, set := range map[string]bool{
			"lifecycle": c.Lifecycle != nil, "livenessProbe": c.LivenessProbe != nil,
			"readinessProbe": c.ReadinessProbe != nil, "startupProbe": c.StartupProbe != nil,
		} {
			if set {
				r.Forbidden(at.Child(name), "may not be set for init containers without restartPolicy=Always")
			}
		}
		for j, policy := range c.ResizePolicy {
			if policy.RestartPolicy == corev1.RestartContainer {
				r.Invalid(at.Child("resizePolicy").Index(j).Child("restartPolicy"), policy.RestartPolicy,
					"must not be set to 'RestartContainer' for non-sidecar initContainers")
			}
		}
	}
	r.validateEphemeral(p.Child("ephemeralContainers"), named)
}

// IsSidecar reports an init container that runs as long as the pod.
func IsSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func (r *specRules) validateEphemeral(p *field.Path, named func(string, *field.Path)) {
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
		named(c.Name, at)
		if e.TargetContainerName != "" && !targets[e.TargetContainerName] {
			r.NotFound(at.Child("targetContainerName"), e.TargetContainerName)
		}
		for j, m := range c.VolumeMounts {
			if m.SubPath != "" {
				r.Forbidden(at.Child("volumeMounts").Index(j).Child("subPath"), "cannot be set for an Ephemeral Container")
			}
			if m.SubPathExpr != "" {
				r.Forbidden(at.Child("volumeMounts").Index(j).Child("subPathExpr"), "cannot be set for an Ephemeral Container")
			}
		}
		for name, set := range map[string]bool{
			"ports": len(c.Ports) > 0, "lifecycle": c.Lifecycle != nil, "livenessProbe": c.LivenessProbe != nil,
			"readinessProbe": c.ReadinessProbe != nil, "startupProbe": c.StartupProbe != nil,
			"resources":    len(c.Resources.Limits)+len(c.Resources.Requests)+len(c.Resources.Claims) > 0,
			"resizePolicy": len(c.ResizePolicy) > 0, "restartPolicy": c.RestartPolicy != nil, "restartPolicyRules": len(c.RestartPolicyRules) > 0,
		} {
			if set {
				r.Forbidden(at.Child(name), "cannot be set for an Ephemeral Container")
			}
		}
	}
}

// validateContainer holds what is true of a container in any list.
func (r *specRules) validateContainer(c *corev1.Container, p *field.Path) {
	r.NeedName(p.Child("name"), c.Name, validation.IsDNS1123Label)
	r.Need(p.Child("image"), c.Image)
	check.OneOf(&r.Faults, p.Child("terminationMessagePolicy"), c.TerminationMessagePolicy,
		corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	check.OneOf(&r.Faults, p.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	r.validatePorts(c.Ports, p.Child("ports"))
	r.validateEnv(c, p)
	r.validateMounts(c, p)
	r.Add(ValidateResources(&c.Resources, r.claims, p.Child("resources")))
	resized := check.Seen[corev1.ResourceName]{}
	for i, policy := range c.ResizePolicy {
		at := p.Child("resizePolicy")
		if resized.Again(policy.ResourceName) {
			r.Duplicate(at.Index(i), policy.ResourceName)
		}
		check.OneOf(&r.Faults, at, policy.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)
		check.OneOf(&r.Faults, at, policy.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)
		if r.spec.RestartPolicy == corev1.RestartPolicyNever && policy.RestartPolicy == corev1.RestartContainer {
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

// hostPorts: one pod cannot bind one port of the host twice.
func (r *specRules) hostPorts(c *corev1.Container, seen check.Seen[string], p *field.Path) {
	for i, port := range c.Ports {
		if port.HostPort == 0 {
			continue
		}
		key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
		if seen.Again(key) {
			r.Duplicate(p.Child("ports").Index(i).Child("hostPort"), key)
		}
	}
}

// Fields of a pod that an environment variable or a file of the downward API may show.
var (
	envFields = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	fileFields = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
	// podFields are those that have a name at all, so that others are told apart from misplaced ones.
	podFields = append(append([]string{"spec.restartPolicy", "spec.schedulerName", "spec.hostname", "spec.subdomain", "status.phase"}, envFields...), "metadata.annotations", "metadata.labels")
)

func in(list []string, v string) bool {
	for _, s := range list {
		if s == v {
			return true
		}
	}
	return false
}

func (r *specRules) validateFieldRef(ref *corev1.ObjectFieldSelector, allowed []string, p *field.Path) {
	if !r.Need(p.Child("apiVersion"), ref.APIVersion) || !r.Need(p.Child("fieldPath"), ref.FieldPath) {
		return
	}
	if ref.APIVersion != "v1" {
		r.Invalid(p.Child("fieldPath"), ref.FieldPath, "error converting fieldPath: unsupported pod version: "+ref.APIVersion)
		return
	}
	if base, rest, ok := strings.Cut(ref.FieldPath, "['"); ok && strings.HasSuffix(rest, "']") {
		key := strings.TrimSuffix(rest, "']")
		switch base {
		case "metadata.annotations":
			r.QualifiedName(p, strings.ToLower(key))
		case "metadata.labels":
			r.QualifiedName(p, key)
		default:
			r.Invalid(p.Child("fieldPath"), ref.FieldPath, "error converting fieldPath: field label does not support subscript: "+ref.FieldPath)
		}
		return
	}
	if !in(podFields, ref.FieldPath) {
		r.Invalid(p.Child("fieldPath"), ref.FieldPath, "error converting fieldPath: field label not supported: "+ref.FieldPath)
		return
	}
	check.Among(&r.Faults, p.Child("fieldPath"), ref.FieldPath, allowed...)
}

// validateResourceRef: file is set inside a volume, where a container must be named.
func (r *specRules) validateResourceRef(ref *corev1.ResourceFieldSelector, file bool, p *field.Path) {
	if file && !r.Need(p.Child("containerName"), ref.ContainerName) || !r.Need(p.Child("resource"), ref.Resource) {
		return
	}
	kind := strings.TrimPrefix(strings.TrimPrefix(ref.Resource, "limits."), "requests.")
	if !strings.HasPrefix(kind, "hugepages-") {
		known := []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"}
		if check.Among(&r.Faults, p.Child("resource"), ref.Resource, known...); !in(known, ref.Resource) {
			return
		}
	}
	if ref.Divisor.IsZero() {
		return
	}
	sizes := []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}
	what := map[string]string{"cpu": "", "memory": "memory", "ephemeral-storage": "local ephemeral storage"}[kind]
	if what == "" {
		what = "hugepages"
	}
	switch d := ref.Divisor.String(); {
	case kind == "cpu" && d != "1m" && d != "1":
		r.Invalid(p.Child("divisor"), ref.Resource, "only divisor's values 1m and 1 are supported with the cpu resource")
	case kind != "cpu" && !in(sizes, d):
		r.Invalid(p.Child("divisor"), ref.Resource, "only divisor's values "+strings.Join(sizes, ", ")+" are supported with the "+what+" resource")
	}
}

func (r *specRules) validateEnv(c *corev1.Container, p *field.Path) {
	for i, e := range c.Env {
		at := p.Child("env").Index(i)
		r.NeedName(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName)
		if e.ValueFrom == nil {
			continue
		}
		from, at := e.ValueFrom, at.Child("valueFrom")
		n := 0
		if from.FieldRef != nil {
			n++
			r.validateFieldRef(from.FieldRef, envFields, at.Child("fieldRef"))
		}
		if from.ResourceFieldRef != nil {
			n++
			r.validateResourceRef(from.ResourceFieldRef, false, at.Child("resourceFieldRef"))
		}
		key := func(name, key string, at *field.Path) {
			n++
			if name != "" {
				r.Subdomain(at.Child("name"), name)
			}
			r.NeedName(at.Child("key"), key, validation.IsConfigMapKey)
		}
		if ref := from.ConfigMapKeyRef; ref != nil {
			key(ref.Name, ref.Key, at.Child("configMapKeyRef"))
		}
		if ref := from.SecretKeyRef; ref != nil {
			key(ref.Name, ref.Key, at.Child("secretKeyRef"))
		}
		if ref := from.FileKeyRef; ref != nil {
			n++
			r.validateFileRef(ref, at.Child("fileKeyRef"))
		}
		switch {
		case n == 0:
			r.Invalid(at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
		case e.Value != "":
			r.Invalid(at, "", "may not be specified when `value` is not empty")
		case n > 1:
			r.Invalid(at, "", "may not have more than one field specified at a time")
		}
	}
	for i, e := range c.EnvFrom {
		at := p.Child("envFrom").Index(i)
		if e.Prefix != "" {
			r.Each(at.Child("prefix"), e.Prefix, validation.IsRelaxedEnvVarName(e.Prefix))
		}
		if e.ConfigMapRef != nil {
			r.NeedName(at.Child("configMapRef", "name"), e.ConfigMapRef.Name, validation.IsDNS1123Subdomain)
		}
		if e.SecretRef != nil {
			r.NeedName(at.Child("secretRef", "name"), e.SecretRef.Name, validation.IsDNS1123Subdomain)
		}
		switch {
		case e.ConfigMapRef == nil && e.SecretRef == nil:
			r.Invalid(at, "", "must specify one of: `configMapRef` or `secretRef`")
		case e.ConfigMapRef != nil && e.SecretRef != nil:
			r.Invalid(at, "", "may not have more than one field specified at a time")
		}
	}
}

func (r *specRules) validateFileRef(ref *corev1.FileKeySelector, p *field.Path) {
	r.NeedName(p.Child("key"), ref.Key, validation.IsRelaxedEnvVarName)
	if r.Need(p.Child("volumeName"), ref.VolumeName) {
		if v, ok := r.volumes[ref.VolumeName]; !ok {
			r.NotFound(p.Child("volumeName"), ref.VolumeName)
		} else if v.EmptyDir == nil {
			r.Invalid(p.Child("volumeName"), ref.VolumeName, "referenced volume must be of type emptyDir")
		}
	}
	if r.Need(p.Child("path"), ref.Path) {
		r.inside(ref.Path, p.Child("path"))
	}
}

func (r *specRules) validateMounts(c *corev1.Container, p *field.Path) {
	devices, devicePaths := map[string]bool{}, map[string]bool{}
	for _, d := range c.VolumeDevices {
		devices[d.Name], devicePaths[d.DevicePath] = true, true
	}
	mounted, mountPaths := map[string]bool{}, check.Seen[string]{}
	for i, m := range c.VolumeMounts {
		at := p.Child("volumeMounts").Index(i)
		mounted[m.Name] = true
		if r.Need(at.Child("name"), m.Name) {
			if _, ok := r.volumes[m.Name]; !ok {
				r.NotFound(at.Child("name"), m.Name)
			}
		}
		r.Need(at.Child("mountPath"), m.MountPath)
		if mountPaths.Again(m.MountPath) {
			r.Invalid(at.Child("mountPath"), m.MountPath, "must be unique")
		}
		if devices[m.Name] {
			r.Invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices")
		}
		if devicePaths[m.MountPath] {
			r.Invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices")
		}
		if m.SubPath != "" {
			r.inside(m.SubPath, p.Child("volumeMounts", "subPath"))
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				r.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive")
			}
			r.inside(m.SubPathExpr, p.Child("volumeMounts", "subPathExpr"))
		}
		if mp := m.MountPropagation; mp != nil {
			at := p.Child("volumeMounts")
			check.Among(&r.Faults, at.Child("mountPropagation"), *mp,
				corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)
			if *mp == corev1.MountPropagationBidirectional && !isPrivileged(c) {
				r.Forbidden(at.Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers")
			}
		}
		if ro := m.RecursiveReadOnly; ro != nil {
			at := p.Child("volumeMounts", "recursiveReadOnly")
			if *ro != corev1.RecursiveReadOnlyDisabled {
				if !m.ReadOnly {
					r.Forbidden(at, "may only be specified when readOnly is true")
				}
				if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
					r.Forbidden(at, "may only be specified when mountPropagation is None or not specified")
				}
			}
			check.Among(&r.Faults, at, *ro, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyIfPossible, corev1.RecursiveReadOnlyEnabled)
		}
	}
	names, paths := check.Seen[string]{}, check.Seen[string]{}
	for i, d := range c.VolumeDevices {
		at := p.Child("volumeDevices").Index(i)
		if r.Need(at.Child("name"), d.Name) {
			if names.Again(d.Name) {
				r.Invalid(at.Child("name"), d.Name, "must be unique")
			}
			if v, ok := r.volumes[d.Name]; !ok {
				r.NotFound(at.Child("name"), d.Name)
			} else if v.PersistentVolumeClaim == nil && v.Ephemeral == nil {
				r.Invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
			}
		}
		if r.Need(at.Child("devicePath"), d.DevicePath) {
			if paths.Again(d.DevicePath) {
				r.Invalid(at.Child("devicePath"), d.DevicePath, "must be unique")
			}
			if hasBackstep(d.DevicePath) {
				r.Invalid(at.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')")
			}
		}
		if mounted[d.Name] {
			r.Invalid(at.Child("name"), d.Name, "must not already exist in volumeMounts")
		}
		if mountPaths[d.DevicePath] {
			r.Invalid(at.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts")
		}
	}
}

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
	for name, h := range map[string]*corev1.LifecycleHandler{"postStart": l.PostStart, "preStop": l.PreStop} {
		if h != nil {
			r.validateHandler(handler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep}, p.Child(name))
		}
	}
	if l.StopSignal != nil && r.spec.OS == nil {
		r.Forbidden(p.Child("stopSignal"), "may not be set for containers with empty `spec.os.name`")
	}
}

func (r *specRules) validateProbes(c *corev1.Container, p *field.Path) {
	r.validateProbe(c.LivenessProbe, p.Child("livenessProbe"))
	r.validateProbe(c.ReadinessProbe, p.Child("readinessProbe"))
	r.validateProbe(c.StartupProbe, p.Child("startupProbe"))
	if l := c.LivenessProbe; l != nil && l.SuccessThreshold != 1 {
		r.Invalid(p.Child("livenessProbe", "successThreshold"), l.SuccessThreshold, "must be 1")
	}
	if s := c.StartupProbe; s != nil && s.SuccessThreshold != 1 {
		r.Invalid(p.Child("startupProbe", "successThreshold"), s.SuccessThreshold, "must be 1")
	}
	if d := c.ReadinessProbe; d != nil && d.TerminationGracePeriodSeconds != nil {
		r.Invalid(p.Child("readinessProbe", "terminationGracePeriodSeconds"), *d.TerminationGracePeriodSeconds, "must not be set for readinessProbes")
	}
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

// validateRestart holds the rules of a container's own restart policy (KEP-5307).
func (r *specRules) validateRestart(c *corev1.Container, p *field.Path) {
	if c.RestartPolicy == nil {
		if len(c.RestartPolicyRules) > 0 {
			r.Required(p.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
		}
		return
	}
	check.Among(&r.Faults, p.Child("restartPolicy"), *c.RestartPolicy,
		corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)
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

func isHugePage(n corev1.ResourceName) bool {
	return strings.HasPrefix(string(n), corev1.ResourceHugePagesPrefix)
}

// isNative: a name without a domain, or one of kubernetes.io.
func isNative(n corev1.ResourceName) bool {
	return !strings.Contains(string(n), "/") || strings.Contains(string(n), "kubernetes.io/")
}

// ValidateResources checks requests, limits and claims of one container, or of
// the pod. claims are the names in the pod's resourceClaims.
func ValidateResources(res *corev1.ResourceRequirements, claims map[string]bool, p *field.Path) field.ErrorList {
	var f check.Faults
	compute, huge := false, false
	one := func(name corev1.ResourceName, q quantity, at *field.Path) {
		f.Add(ValidateContainerResourceName(name, at))
		f.Add(ValidateQuantity(name, q, at))
		compute = compute || name == corev1.ResourceCPU || name == corev1.ResourceMemory
		if !isHugePage(name) {
			return
		}
		huge = true
		size := strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix)
		if page, err := parseQuantity(size); err == nil && page.Value() > 0 && q.Value()%page.Value() != 0 {
			f.Invalid(at, q.String(), fmt.Sprintf("%s is not positive integer multiple of %s", q.String(), name))
		}
	}
	for name, q := range res.Limits {
		one(name, q, p.Child("limits").Key(string(name)))
	}
	for name, q := range res.Requests {
		one(name, q, p.Child("requests").Key(string(name)))
		limit, limited := res.Limits[name]
		over := isNative(name) && !isHugePage(name) // may be promised more than once
		switch {
		case !limited && !over:
			f.Required(p.Child("limits"), "Limit must be set for non overcommitable resources")
		case limited && !over && q.Cmp(limit) != 0:
			f.Invalid(p.Child("requests"), q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String()))
		case limited && q.Cmp(limit) > 0:
			f.Invalid(p.Child("requests"), q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String()))
		}
	}
	if huge && !compute {
		f.Forbidden(p, "HugePages require cpu or memory")
	}
	seen := check.Seen[string]{}
	for i, c := range res.Claims {
		at := p.Child("claims").Index(i)
		if c.Name == "" {
			f.Required(at, "")
			continue
		}
		key := c.Name
		if c.Request != "" {
			f.Label(at.Child("request"), c.Request)
			key += "/" + c.Request
		}
		if seen[c.Name] || seen.Again(key) {
			f.Duplicate(at, key)
		}
		if !claims[c.Name] {
			e := field.NotFound(at, c.Name)
			e.Detail = "must be one of the names in pod.spec.resourceClaims"
			if len(claims) == 0 {
				e.Detail += " which is empty"
			}
			f.Add(field.ErrorList{e})
		}
	}
	return f.List()
}

// ValidateContainerResourceName accepts cpu, memory, ephemeral-storage, huge pages and extended resources.
func ValidateContainerResourceName(n corev1.ResourceName, p *field.Path) field.ErrorList {
	var f check.Faults
	f.QualifiedName(p, string(n))
	if !f.Empty() {
		return f.List()
	}
	switch {
	case n == corev1.ResourceCPU, n == corev1.ResourceMemory, n == corev1.ResourceEphemeralStorage, isHugePage(n):
	case !strings.Contains(string(n), "/"):
		if n != corev1.ResourceStorage && n != corev1.ResourcePods {
			f.Invalid(p, n, "must be a standard resource type or fully qualified")
		}
		f.Invalid(p, n, "must be a standard resource for containers")
	case !isNative(n) && (strings.HasPrefix(string(n), "requests.") || len(validation.IsQualifiedName("requests."+string(n))) > 0):
		f.Invalid(p, n, "doesn't follow extended resource name standard")
	}
	return f.List()
}

// ValidateQuantity refuses negative amounts, and fractions of what is counted.
func ValidateQuantity(n corev1.ResourceName, q quantity, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Quantity(p, q)
	if IsInteger(n) && q.MilliValue()%1000 != 0 {
		f.Invalid(p, q.String(), "must be an integer")
	}
	return f.List()
}

// IsInteger reports resources that are counted in whole numbers: objects, and extended resources.
func IsInteger(n corev1.ResourceName) bool {
	switch n {
	case corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
		corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers:
		return true
	}
	return !isNative(n) && strings.Contains(string(n), "/")
}

// hasBackstep reports a ".." among the parts of a path.
func hasBackstep(path string) bool {
	return in(strings.Split(strings.ReplaceAll(path, "\\", "/"), "/"), "..")
}

// inside: a relative path that stays below where it starts.
func (r *specRules) inside(path string, p *field.Path) {
	if strings.HasPrefix(path, "/") {
		r.Invalid(p, path, "must be a relative path")
	}
	if hasBackstep(path) {
		r.Invalid(p, path, "must not contain '..'")
	}
}

// ValidateTolerations checks tolerations wherever they stand: in pods and in runtime classes.
func ValidateTolerations(list []corev1.Toleration, p *field.Path) field.ErrorList {
	var f check.Faults
	for i, t := range list {
		at := p.Index(i)
		if t.Key != "" {
			f.LabelName(at.Child("key"), t.Key)
		} else if t.Operator != corev1.TolerationOpExists {
			f.Invalid(at.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"")
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			f.Invalid(at.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
		}
		switch t.Operator {
		case "", corev1.TolerationOpEqual:
			if msgs := validation.IsValidLabelValue(t.Value); len(msgs) > 0 {
				f.Invalid(at.Child("operator"), t.Value, strings.Join(msgs, ";"))
			}
		case corev1.TolerationOpExists:
			if t.Value != "" {
				f.Invalid(at.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'")
			}
		case corev1.TolerationOpLt, corev1.TolerationOpGt:
			if _, err := strconv.ParseInt(t.Value, 10, 64); err != nil {
				f.Invalid(at.Child("value"), t.Value, err.Error())
			}
		default:
			check.Listed(&f, at.Child("operator"), t.Operator, corev1.TolerationOpEqual, corev1.TolerationOpExists)
		}
		if t.Effect != "" {
			check.Listed(&f, at.Child("effect"), t.Effect, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
		}
	}
	return f.List()
}
