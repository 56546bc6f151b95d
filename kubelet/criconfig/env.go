package criconfig

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/keelson/keelson/kubelet/pod"
)

// EnvVar is one variable of a container's environment.
type EnvVar struct{ Name, Value string }

// Expand replaces $(NAME) by the variable's value. $$ stands for $, and a reference to an
// unknown variable stays as it is.
//
// Source: API reference, Container.command.
func Expand(s string, vars ...map[string]string) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			name, _, closed := strings.Cut(s[i+2:], ")")
			if !closed {
				b.WriteByte('$')
				continue
			}
			value, known := "", false
			for _, m := range vars {
				if value, known = m[name]; known {
					break
				}
			}
			if !known {
				value = "$(" + name + ")"
			}
			b.WriteString(value)
			i += len(name) + 2
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// Lookup finds the objects and files that an environment refers to. Not found is an error
// for which NotFound is true.
type Lookup interface {
	ConfigMap(name string) (*corev1.ConfigMap, error)
	Secret(name string) (*corev1.Secret, error)
	// File reads one key of an env file in a volume of the pod.
	File(volume, path, key string) (value string, found bool, err error)
	NotFound(err error) bool
}

// Env is the environment of a container: envFrom, then env in the spec's order, then the
// variables of services that neither has set.
//
// status is the pod's status as far as it is known (addresses). Errors are for the user:
// they become CreateContainerConfigError.
func Env(n Node, p *corev1.Pod, c *corev1.Container, status *corev1.PodStatus, services []*corev1.Service, look Lookup) ([]EnvVar, error) {
	vars := map[string]string{}
	links := p.Spec.EnableServiceLinks == nil || *p.Spec.EnableServiceLinks
	fromServices := ServiceEnv(p.Namespace, links, services)
	for _, from := range c.EnvFrom {
		if err := envFrom(from, look, vars, p.Namespace); err != nil {
			return nil, err
		}
	}
	for _, e := range c.Env {
		value := e.Value
		if value != "" {
			value = Expand(value, vars, fromServices)
		} else if e.ValueFrom != nil {
			v, skip, err := valueFrom(n, p, c, status, e.ValueFrom, look)
			if err != nil {
				return nil, err
			}
			if skip {
				continue
			}
			value = v
		}
		vars[e.Name] = value
	}
	for k, v := range fromServices {
		if _, set := vars[k]; !set {
			vars[k] = v
		}
	}
	out := make([]EnvVar, 0, len(vars))
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		out = append(out, EnvVar{k, vars[k]})
	}
	return out, nil
}

func envFrom(from corev1.EnvFromSource, look Lookup, vars map[string]string, namespace string) error {
	switch {
	case from.ConfigMapRef != nil:
		m, err := look.ConfigMap(from.ConfigMapRef.Name)
		if err != nil {
			if look.NotFound(err) && isTrue(from.ConfigMapRef.Optional) {
				return nil
			}
			return err
		}
		for k, v := range m.Data {
			vars[from.Prefix+k] = v
		}
	case from.SecretRef != nil:
		s, err := look.Secret(from.SecretRef.Name)
		if err != nil {
			if look.NotFound(err) && isTrue(from.SecretRef.Optional) {
				return nil
			}
			return err
		}
		for k, v := range s.Data {
			vars[from.Prefix+k] = string(v)
		}
	}
	return nil
}

func valueFrom(n Node, p *corev1.Pod, c *corev1.Container, status *corev1.PodStatus, src *corev1.EnvVarSource, look Lookup) (value string, skip bool, err error) {
	missing := func(err error, optional *bool) (string, bool, error) {
		if look.NotFound(err) && isTrue(optional) {
			return "", true, nil
		}
		return "", false, err
	}
	switch {
	case src.FieldRef != nil:
		value, err = Field(n, p, status, src.FieldRef.FieldPath)
		return value, false, err
	case src.ResourceFieldRef != nil:
		value, err = ResourceField(n, p, c, src.ResourceFieldRef)
		return value, false, err
	case src.ConfigMapKeyRef != nil:
		ref := src.ConfigMapKeyRef
		m, err := look.ConfigMap(ref.Name)
		if err != nil {
			return missing(err, ref.Optional)
		}
		v, ok := m.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, p.Namespace, ref.Name)
		}
		return v, !ok, nil
	case src.SecretKeyRef != nil:
		ref := src.SecretKeyRef
		s, err := look.Secret(ref.Name)
		if err != nil {
			return missing(err, ref.Optional)
		}
		v, ok := s.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, p.Namespace, ref.Name)
		}
		return string(v), !ok, nil
	case src.FileKeyRef != nil:
		ref := src.FileKeyRef
		v, ok, err := look.File(ref.VolumeName, ref.Path, ref.Key)
		if err != nil {
			return "", false, err
		}
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, ref.Path)
		}
		return v, !ok, nil
	}
	return "", false, nil
}

func isTrue(b *bool) bool { return b != nil && *b }

// Field is the value of a downward API field for an environment variable.
//
// Source: API reference, EnvVarSource.fieldRef.
func Field(n Node, p *corev1.Pod, status *corev1.PodStatus, path string) (string, error) {
	if base, key, ok := strings.Cut(path, "['"); ok && strings.HasSuffix(key, "']") {
		key = strings.TrimSuffix(key, "']")
		switch base {
		case "metadata.annotations":
			if errs := validation.IsQualifiedName(strings.ToLower(key)); len(errs) > 0 {
				return "", fmt.Errorf("invalid key subscript in %s: %s", path, strings.Join(errs, ";"))
			}
			return p.Annotations[key], nil
		case "metadata.labels":
			return p.Labels[key], nil
		}
		return "", fmt.Errorf("fieldPath %q does not support subscript", path)
	}
	switch path {
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "spec.nodeName":
		return p.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return p.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return status.HostIP, nil
	case "status.hostIPs":
		var all []string
		for _, ip := range status.HostIPs {
			all = append(all, ip.IP)
		}
		return strings.Join(all, ","), nil
	case "status.podIP":
		return status.PodIP, nil
	case "status.podIPs":
		var all []string
		for _, ip := range status.PodIPs {
			all = append(all, ip.IP)
		}
		return strings.Join(all, ","), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", path)
}

// ResourceField is the value of a resourceFieldRef. A missing limit is the node's
// allocatable.
func ResourceField(n Node, p *corev1.Pod, c *corev1.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" && ref.ContainerName != c.Name {
		other, _ := pod.Find(p, ref.ContainerName)
		if other == nil {
			return "", fmt.Errorf("container %s not found", ref.ContainerName)
		}
		c = other
	}
	kind, name, ok := strings.Cut(ref.Resource, ".")
	if !ok || (kind != "limits" && kind != "requests") {
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	}
	list := c.Resources.Requests
	if kind == "limits" {
		list = c.Resources.Limits
	}
	q, set := list[corev1.ResourceName(name)]
	if kind == "limits" && (!set || q.IsZero()) {
		if r := p.Spec.Resources; r != nil && !r.Limits[corev1.ResourceName(name)].Equal(resource.Quantity{}) {
			q = r.Limits[corev1.ResourceName(name)]
		} else {
			q = n.Allocatable[corev1.ResourceName(name)]
		}
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	ceil := func(v, d int64) int64 { return (v + d - 1) / d }
	if name == "cpu" {
		return strconv.FormatInt(ceil(q.MilliValue(), max(divisor.MilliValue(), 1)), 10), nil
	}
	return strconv.FormatInt(ceil(q.Value(), max(divisor.Value(), 1)), 10), nil
}

// ServiceEnv are the variables that describe services: those of the pod's namespace with
// links, and always the API server's.
//
// Source: Kubernetes concepts, "Service", environment variables; the "docker links" form
// goes with it.
func ServiceEnv(namespace string, links bool, services []*corev1.Service) map[string]string {
	vars := map[string]string{}
	put := func(s *corev1.Service) {
		name := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
		ip := s.Spec.ClusterIP
		vars[name+"_SERVICE_HOST"] = ip
		vars[name+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
		for i, port := range s.Spec.Ports {
			num, proto := strconv.Itoa(int(port.Port)), string(port.Protocol)
			if proto == "" {
				proto = "TCP"
			}
			if port.Name != "" {
				vars[name+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(port.Name, "-", "_"))] = num
			}
			url := strings.ToLower(proto) + "://" + net.JoinHostPort(ip, num)
			if i == 0 {
				vars[name+"_PORT"] = url
			}
			prefix := name + "_PORT_" + num + "_" + strings.ToUpper(proto)
			vars[prefix] = url
			vars[prefix+"_PROTO"] = strings.ToLower(proto)
			vars[prefix+"_PORT"] = num
			vars[prefix+"_ADDR"] = ip
		}
	}
	for pass, of := range []string{"default", namespace} {
		for _, s := range services {
			api := s.Namespace == "default" && s.Name == "kubernetes"
			if s.Namespace != of || s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
				continue
			}
			if (pass == 0 && api) || (pass == 1 && (links || api)) {
				put(s)
			}
		}
	}
	return vars
}
