// Package criconfig turns a pod's spec into the messages that create its sandbox and its
// containers in a CRI runtime: names, labels, environment, namespaces, security context,
// resources, DNS, ports.
//
// Everything here is pure. What has to be looked up (objects that the environment refers
// to, addresses, volume paths) is an argument, so a test can ask what the runtime would
// be told for any pod. What the runtime is told is what upstream's kubelet tells it: labels,
// annotations and paths are an interface to log collectors, crictl and stats.
package criconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson/keelson/kubelet/pod"
)

// Labels and annotations on sandboxes and containers.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"

	AnnotationHash                     = "io.kubernetes.container.hash"
	AnnotationRestartCount             = "io.kubernetes.container.restartCount"
	AnnotationTerminationMessagePath   = "io.kubernetes.container.terminationMessagePath"
	AnnotationTerminationMessagePolicy = "io.kubernetes.container.terminationMessagePolicy"
	AnnotationPreStop                  = "io.kubernetes.container.preStopHandler"
	AnnotationPorts                    = "io.kubernetes.container.ports"
	AnnotationDeletionGrace            = "io.kubernetes.pod.deletionGracePeriod"
	AnnotationTerminationGrace         = "io.kubernetes.pod.terminationGracePeriod"
)

// Node is what the node contributes to every pod.
type Node struct {
	Name string
	// LogRoot is the directory of all pods' logs, /var/log/pods.
	LogRoot string
	// MemoryBytes is the node's capacity of memory, Capacity all of it.
	MemoryBytes int64
	Capacity    corev1.ResourceList
	// Allocatable are the limits that resourceFieldRef shows for containers without.
	Allocatable corev1.ResourceList
	// CgroupV2 tells which form of memory protection and weights to ask for.
	CgroupV2 bool
	// SwapLimits says that the kernel can keep containers from swapping.
	SwapLimits bool
	// SingleProcessOOMKill leaves a container's other processes alone when one is out of memory (cgroup v2).
	SingleProcessOOMKill bool
	// AllowedUnsafeSysctls are names or prefixes ending in "*".
	AllowedUnsafeSysctls []string
	SeccompDefault       bool
	// SeccompRoot is where localhost profiles lie, <root>/seccomp.
	SeccompRoot string
	// CPUQuota and CPUQuotaPeriodMicros: whether CPU limits become quotas.
	CPUQuota             bool
	CPUQuotaPeriodMicros int64
	DNS                  NodeDNS
}

// LogDir is where the pod's containers log: <root>/<namespace>_<name>_<uid>.
func LogDir(root string, p *corev1.Pod) string {
	return filepath.Join(root, p.Namespace+"_"+p.Name+"_"+string(p.UID))
}

// LogSymlink is the name of a container's log below /var/log/containers.
func LogSymlink(p *corev1.Pod, container, id string) string {
	prefix := fmt.Sprintf("%s_%s_%s", p.Name, p.Namespace, container)
	// A file name has at most 255 bytes.
	if most := 255 - len(".log") - 1 - len(id); len(prefix) > most {
		prefix = prefix[:most]
	}
	return prefix + "-" + id + ".log"
}

// Sandbox is the sandbox of the pod. cgroupParent is in the runtime's form.
func Sandbox(n Node, p *corev1.Pod, attempt uint32, cgroupParent string, userns *cri.UserNamespace) (*cri.PodSandboxConfig, error) {
	if err := checkSysctls(n, p); err != nil {
		return nil, err
	}
	hostname, err := SandboxHostname(n, p)
	if err != nil {
		return nil, err
	}
	c := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: string(p.UID), Attempt: attempt},
		Hostname:     hostname,
		LogDirectory: LogDir(n.LogRoot, p),
		DnsConfig:    DNS(n.DNS, p),
		PortMappings: ports(p),
		Labels:       podLabels(p),
		Annotations:  p.Annotations,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    cgroupParent,
			SecurityContext: sandboxSecurity(p, userns),
			Sysctls:         map[string]string{},
			Resources:       podResources(n, p),
			Overhead:        overhead(n, p),
		},
	}
	if sc := p.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			c.Linux.Sysctls[s.Name] = s.Value
		}
	}
	return c, nil
}

func podLabels(p *corev1.Pod) map[string]string {
	l := make(map[string]string, len(p.Labels)+3)
	for k, v := range p.Labels {
		l[k] = v
	}
	l[LabelPodName], l[LabelPodNamespace], l[LabelPodUID] = p.Name, p.Namespace, string(p.UID)
	return l
}

// ports are the host ports of the pod's containers and sidecars.
func ports(p *corev1.Pod) []*cri.PortMapping {
	var out []*cri.PortMapping
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			out = append(out, &cri.PortMapping{
				Protocol:      cri.Protocol(cri.Protocol_value[string(port.Protocol)]),
				ContainerPort: port.ContainerPort, HostPort: port.HostPort, HostIp: port.HostIP,
			})
		}
	}
	for i := range p.Spec.InitContainers {
		if _, kind := pod.Find(p, p.Spec.InitContainers[i].Name); kind == pod.Sidecar {
			add(&p.Spec.InitContainers[i])
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	return out
}

// SandboxHostname is the kernel host name of the pod: hostname or the pod's name, with the
// domain when setHostnameAsFQDN asks for it. It is empty for a pod on the host's network.
func SandboxHostname(n Node, p *corev1.Pod) (string, error) {
	if p.Spec.HostNetwork && p.Spec.HostnameOverride == nil {
		return "", nil
	}
	if o := p.Spec.HostnameOverride; o != nil {
		return *o, nil
	}
	host, domain := HostnameAndDomain(n, p)
	if f := p.Spec.SetHostnameAsFQDN; f != nil && *f && domain != "" {
		fqdn := host + "." + domain
		// The kernel takes 64 bytes.
		if len(fqdn) > 64 {
			return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (64 characters is the max, %d characters requested)", fqdn, len(fqdn))
		}
		return fqdn, nil
	}
	return host, nil
}

// HostnameAndDomain are the pod's host name and, with a subdomain, its cluster domain.
func HostnameAndDomain(n Node, p *corev1.Pod) (host, domain string) {
	host = p.Name
	if o := p.Spec.HostnameOverride; o != nil {
		return *o, ""
	}
	if p.Spec.Hostname != "" {
		host = p.Spec.Hostname
	} else if len(host) > 63 {
		host = strings.TrimRight(host[:63], "-.")
	}
	if p.Spec.Subdomain != "" {
		domain = fmt.Sprintf("%s.%s.svc.%s", p.Spec.Subdomain, p.Namespace, n.DNS.ClusterDomain)
	}
	return host, domain
}

// ErrConfig marks a container that cannot be created as its spec stands
// (CreateContainerConfigError).
var ErrConfig = errors.New("container configuration")

// Mount is one mount for a container; see cri.Mount.
type Mount = cri.Mount

// Extra is what had to be looked up for one container.
type Extra struct {
	RestartCount uint32
	// Image is what to run: the runtime's reference for the image that was found.
	Image *cri.ImageSpec
	// ImageUser is the user of the image, to check runAsNonRoot.
	ImageUID  *int64
	ImageUser string
	Env       []EnvVar
	Mounts    []*Mount
	Devices   []*cri.Device
	// TargetID is the container whose process namespace an ephemeral container enters.
	TargetID string
	UserNS   *cri.UserNamespace
}

// Container is one container of the pod, in whatever list it stands.
func Container(n Node, p *corev1.Pod, c *corev1.Container, x Extra) (*cri.ContainerConfig, error) {
	if err := checkNonRoot(p, c, x.ImageUID, x.ImageUser); err != nil {
		return nil, err
	}
	env := make(map[string]string, len(x.Env))
	out := &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: c.Name, Attempt: x.RestartCount},
		Image:       x.Image,
		WorkingDir:  c.WorkingDir,
		Labels:      labels(p, c),
		Annotations: annotations(p, c, x.RestartCount),
		Mounts:      x.Mounts,
		Devices:     x.Devices,
		LogPath:     filepath.Join(c.Name, strconv.FormatUint(uint64(x.RestartCount), 10)+".log"),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		StopSignal:  cri.Signal_RUNTIME_DEFAULT,
	}
	for _, e := range x.Env {
		env[e.Name] = e.Value
		out.Envs = append(out.Envs, &cri.KeyValue{Key: e.Name, Value: []byte(e.Value)})
	}
	for _, s := range c.Command {
		out.Command = append(out.Command, Expand(s, env))
	}
	for _, s := range c.Args {
		out.Args = append(out.Args, Expand(s, env))
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		if v, ok := cri.Signal_value[string(*c.Lifecycle.StopSignal)]; ok {
			out.StopSignal = cri.Signal(v)
		}
	}
	security, err := containerSecurity(n, p, c, x)
	if err != nil {
		return nil, err
	}
	out.Linux = &cri.LinuxContainerConfig{Resources: Resources(n, p, c), SecurityContext: security}
	return out, nil
}

func labels(p *corev1.Pod, c *corev1.Container) map[string]string {
	return map[string]string{
		LabelPodName: p.Name, LabelPodNamespace: p.Namespace, LabelPodUID: string(p.UID),
		LabelContainerName: c.Name,
	}
}

func annotations(p *corev1.Pod, c *corev1.Container, restart uint32) map[string]string {
	a := map[string]string{
		AnnotationHash:                     pod.Hash(c),
		AnnotationRestartCount:             strconv.FormatUint(uint64(restart), 10),
		AnnotationTerminationMessagePath:   c.TerminationMessagePath,
		AnnotationTerminationMessagePolicy: string(c.TerminationMessagePolicy),
	}
	if g := p.DeletionGracePeriodSeconds; g != nil {
		a[AnnotationDeletionGrace] = strconv.FormatInt(*g, 10)
	}
	if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
		a[AnnotationTerminationGrace] = strconv.FormatInt(*g, 10)
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		if text, err := json.Marshal(c.Lifecycle.PreStop); err == nil {
			a[AnnotationPreStop] = string(text)
		}
	}
	if len(c.Ports) > 0 {
		if text, err := json.Marshal(c.Ports); err == nil {
			a[AnnotationPorts] = string(text)
		}
	}
	return a
}

// FromLabels rebuilds as much of a pod as its sandbox or a container tells: enough to stop
// it when no source knows it any more.
func FromLabels(labels, annotations map[string]string) *corev1.Pod {
	p := &corev1.Pod{}
	p.Name, p.Namespace, p.UID = labels[LabelPodName], labels[LabelPodNamespace], types.UID(labels[LabelPodUID])
	if g, err := strconv.ParseInt(annotations[AnnotationDeletionGrace], 10, 64); err == nil {
		p.DeletionGracePeriodSeconds = &g
	}
	if g, err := strconv.ParseInt(annotations[AnnotationTerminationGrace], 10, 64); err == nil {
		p.Spec.TerminationGracePeriodSeconds = &g
	}
	if source := annotations[pod.AnnotationSource]; source != "" {
		p.Annotations = map[string]string{pod.AnnotationSource: source}
	}
	if name := labels[LabelContainerName]; name != "" {
		c := corev1.Container{Name: name, TerminationMessagePath: annotations[AnnotationTerminationMessagePath]}
		if text := annotations[AnnotationPreStop]; text != "" {
			var h corev1.LifecycleHandler
			if json.Unmarshal([]byte(text), &h) == nil {
				c.Lifecycle = &corev1.Lifecycle{PreStop: &h}
			}
		}
		if text := annotations[AnnotationPorts]; text != "" {
			_ = json.Unmarshal([]byte(text), &c.Ports)
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	return p
}
