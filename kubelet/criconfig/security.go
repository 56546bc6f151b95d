package criconfig

import (
	"fmt"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/pod"
)

// safeSysctls may be set by any pod. Source: Kubernetes tasks, "Using sysctls in a
// Kubernetes Cluster"; those that need a newer kernel are refused by the kernel itself.
var safeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

// namespacedSysctls are the groups that belong to a namespace of the pod.
var namespacedSysctls = []struct{ prefix, namespace string }{
	{"kernel.shm", "ipc"}, {"kernel.msg", "ipc"}, {"kernel.sem", "ipc"}, {"fs.mqueue.", "ipc"}, {"net.", "net"},
}

// SysctlForbidden is the reason of a pod that asks for a sysctl this node does not allow.
const SysctlForbidden = "SysctlForbidden"

func checkSysctls(n Node, p *corev1.Pod) error {
	if p.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range p.Spec.SecurityContext.Sysctls {
		if !sysctlAllowed(n, p, s.Name) {
			return fmt.Errorf("forbidden sysctl: %q not allowlisted", s.Name)
		}
	}
	return nil
}

// ForbiddenSysctl is the message that rejects the pod, or "".
func ForbiddenSysctl(n Node, p *corev1.Pod) string {
	if err := checkSysctls(n, p); err != nil {
		return err.Error()
	}
	return ""
}

func sysctlAllowed(n Node, p *corev1.Pod, name string) bool {
	dotted := strings.ReplaceAll(name, "/", ".")
	for _, group := range namespacedSysctls {
		if strings.HasPrefix(dotted, group.prefix) {
			if (group.namespace == "net" && p.Spec.HostNetwork) || (group.namespace == "ipc" && p.Spec.HostIPC) {
				return false
			}
			break
		}
	}
	for _, s := range safeSysctls {
		if s == dotted {
			return true
		}
	}
	for _, s := range n.AllowedUnsafeSysctls {
		if prefix, wild := strings.CutSuffix(s, "*"); s == dotted || (wild && strings.HasPrefix(dotted, prefix)) {
			return true
		}
	}
	return false
}

// namespaces are the namespaces the pod's processes are in.
func namespaces(p *corev1.Pod, targetID string, userns *cri.UserNamespace) *cri.NamespaceOption {
	o := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: userns}
	if p.Spec.HostNetwork {
		o.Network = cri.NamespaceMode_NODE
	}
	if p.Spec.HostIPC {
		o.Ipc = cri.NamespaceMode_NODE
	}
	switch {
	case p.Spec.HostPID:
		o.Pid = cri.NamespaceMode_NODE
	case isTrue(p.Spec.ShareProcessNamespace):
		o.Pid = cri.NamespaceMode_POD
	case targetID != "":
		o.Pid, o.TargetId = cri.NamespaceMode_TARGET, targetID
	}
	return o
}

func sandboxSecurity(p *corev1.Pod, userns *cri.UserNamespace) *cri.LinuxSandboxSecurityContext {
	s := &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(p, "", userns),
		Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if sc := list[i].SecurityContext; sc != nil && isTrue(sc.Privileged) {
				s.Privileged = true
			}
		}
	}
	sc := p.Spec.SecurityContext
	if sc == nil {
		return s
	}
	s.RunAsUser, s.RunAsGroup = int64Value(sc.RunAsUser), int64Value(sc.RunAsGroup)
	s.SelinuxOptions = selinux(sc.SELinuxOptions)
	s.SupplementalGroups = groups(p)
	s.SupplementalGroupsPolicy = groupsPolicy(sc)
	return s
}

func int64Value(v *int64) *cri.Int64Value {
	if v == nil {
		return nil
	}
	return &cri.Int64Value{Value: *v}
}

func selinux(o *corev1.SELinuxOptions) *cri.SELinuxOption {
	if o == nil {
		return nil
	}
	return &cri.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func groups(p *corev1.Pod) []int64 {
	sc := p.Spec.SecurityContext
	if sc == nil {
		return nil
	}
	var out []int64
	if sc.FSGroup != nil {
		out = append(out, *sc.FSGroup)
	}
	return append(out, sc.SupplementalGroups...)
}

func groupsPolicy(sc *corev1.PodSecurityContext) cri.SupplementalGroupsPolicy {
	if sc.SupplementalGroupsPolicy != nil && *sc.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		return cri.SupplementalGroupsPolicy_Strict
	}
	return cri.SupplementalGroupsPolicy_Merge
}

// effective is the container's security context with what it leaves to the pod's.
func effective(p *corev1.Pod, c *corev1.Container) corev1.SecurityContext {
	var out corev1.SecurityContext
	if c.SecurityContext != nil {
		out = *c.SecurityContext
	}
	sc := p.Spec.SecurityContext
	if sc == nil {
		return out
	}
	if out.RunAsUser == nil {
		out.RunAsUser = sc.RunAsUser
	}
	if out.RunAsGroup == nil {
		out.RunAsGroup = sc.RunAsGroup
	}
	if out.RunAsNonRoot == nil {
		out.RunAsNonRoot = sc.RunAsNonRoot
	}
	if out.SELinuxOptions == nil {
		out.SELinuxOptions = sc.SELinuxOptions
	}
	if out.SeccompProfile == nil {
		out.SeccompProfile = sc.SeccompProfile
	}
	if out.AppArmorProfile == nil {
		out.AppArmorProfile = sc.AppArmorProfile
	}
	return out
}

// checkNonRoot refuses a container that would run as root against runAsNonRoot. The
// messages are upstream's, which users search for.
func checkNonRoot(p *corev1.Pod, c *corev1.Container, uid *int64, user string) error {
	sc := effective(p, c)
	if !isTrue(sc.RunAsNonRoot) {
		return nil
	}
	where := fmt.Sprintf("(pod: %q, container: %s)", pod.Full(p), c.Name)
	switch {
	case sc.RunAsUser != nil:
		if *sc.RunAsUser == 0 {
			return fmt.Errorf("container's runAsUser breaks non-root policy %s", where)
		}
	case uid == nil && user != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", user, where)
	case uid != nil && *uid == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	}
	return nil
}

// maskedPaths and readonlyPaths are hidden from containers with the default /proc.
// Source: API reference, SecurityContext.procMount; the list is the runtimes' usual one.
var (
	maskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func containerSecurity(n Node, p *corev1.Pod, c *corev1.Container, x Extra) (*cri.LinuxContainerSecurityContext, error) {
	sc := effective(p, c)
	s := &cri.LinuxContainerSecurityContext{
		NamespaceOptions:   namespaces(p, x.TargetID, x.UserNS),
		Privileged:         isTrue(sc.Privileged),
		ReadonlyRootfs:     isTrue(sc.ReadOnlyRootFilesystem),
		RunAsUser:          int64Value(sc.RunAsUser),
		RunAsGroup:         int64Value(sc.RunAsGroup),
		SelinuxOptions:     selinux(sc.SELinuxOptions),
		SupplementalGroups: groups(p),
		NoNewPrivs:         sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation,
		MaskedPaths:        maskedPaths,
		ReadonlyPaths:      readonlyPaths,
	}
	if p.Spec.SecurityContext != nil {
		s.SupplementalGroupsPolicy = groupsPolicy(p.Spec.SecurityContext)
	}
	if s.RunAsUser == nil {
		if x.ImageUID != nil {
			s.RunAsUser = &cri.Int64Value{Value: *x.ImageUID}
		} else if x.ImageUser != "" {
			s.RunAsUsername = x.ImageUser
		}
	}
	if sc.ProcMount != nil && *sc.ProcMount == corev1.UnmaskedProcMount {
		s.MaskedPaths, s.ReadonlyPaths = nil, nil
	}
	if sc.Capabilities != nil {
		s.Capabilities = &cri.Capability{}
		for _, v := range sc.Capabilities.Add {
			s.Capabilities.AddCapabilities = append(s.Capabilities.AddCapabilities, string(v))
		}
		for _, v := range sc.Capabilities.Drop {
			s.Capabilities.DropCapabilities = append(s.Capabilities.DropCapabilities, string(v))
		}
	}
	var err error
	if s.Seccomp, err = seccomp(n, sc); err != nil {
		return nil, err
	}
	s.Apparmor, s.ApparmorProfile = apparmor(p, c, sc)
	return s, nil
}

func seccomp(n Node, sc corev1.SecurityContext) (*cri.SecurityProfile, error) {
	unconfined := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	if isTrue(sc.Privileged) && sc.SeccompProfile == nil {
		return unconfined, nil
	}
	switch f := sc.SeccompProfile; {
	case f == nil && n.SeccompDefault, f != nil && f.Type == corev1.SeccompProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
	case f != nil && f.Type == corev1.SeccompProfileTypeLocalhost:
		if f.LocalhostProfile == nil || *f.LocalhostProfile == "" {
			return nil, fmt.Errorf("localhostProfile must be set if seccompProfile type is Localhost.")
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost,
			LocalhostRef: filepath.Join(n.SeccompRoot, *f.LocalhostProfile)}, nil
	}
	return unconfined, nil
}

// apparmor is the container's profile, from the field or the older annotation.
func apparmor(p *corev1.Pod, c *corev1.Container, sc corev1.SecurityContext) (*cri.SecurityProfile, string) {
	profile := sc.AppArmorProfile
	if profile == nil {
		switch old := p.Annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]; {
		case old == "":
			return nil, ""
		case old == "runtime/default":
			profile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
		case old == "unconfined":
			profile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
		default:
			name := strings.TrimPrefix(old, "localhost/")
			profile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
		}
	}
	switch profile.Type {
	case corev1.AppArmorProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, "runtime/default"
	case corev1.AppArmorProfileTypeLocalhost:
		name := ""
		if profile.LocalhostProfile != nil {
			name = *profile.LocalhostProfile
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: name}, "localhost/" + name
	default:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, "unconfined"
	}
}
