package podrules

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// Fields of a pod that an environment variable or a file of the downward API may show.
var (
	envFields = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	fileFields = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
	// podFields are those that have a name at all, so that others are told apart from misplaced ones.
	podFields = append([]string{"spec.restartPolicy", "spec.schedulerName", "status.phase", "metadata.annotations", "metadata.labels"}, envFields...)
)

func (r *specRules) validateFieldRef(ref *corev1.ObjectFieldSelector, allowed []string, p *field.Path) {
	if !r.Need(p.Child("apiVersion"), ref.APIVersion) || !r.Need(p.Child("fieldPath"), ref.FieldPath) {
		return
	}
	at, shown := p.Child("fieldPath"), ref.FieldPath
	inconvertible := func(why string) { r.Invalid(at, shown, "error converting fieldPath: "+why) }
	base, key, subscripted := strings.Cut(strings.TrimSuffix(shown, "']"), "['")
	subscripted = subscripted && strings.HasSuffix(shown, "']") && base != ""
	switch {
	case ref.APIVersion != "v1":
		inconvertible("unsupported pod version: " + ref.APIVersion)
	case subscripted && base == "metadata.annotations":
		r.QualifiedName(p, strings.ToLower(key))
	case subscripted && base == "metadata.labels":
		r.QualifiedName(p, key)
	case subscripted:
		inconvertible("field label does not support subscript: " + shown)
	case shown == "spec.host": // its name before v1
		check.Among(&r.Faults, at, "spec.nodeName", allowed...)
	case !slices.Contains(podFields, shown):
		inconvertible("field label not supported: " + shown)
	default:
		check.Among(&r.Faults, at, shown, allowed...)
	}
}

var (
	shownResources = []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"}
	divisors       = []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}
	// dividedNames are how messages about divisors name what is divided.
	dividedNames = map[string]string{"memory": "memory", "ephemeral-storage": "local ephemeral storage", "hugepages": "hugepages"}
)

// validateResourceRef: file is set inside a volume, where a container must be named.
func (r *specRules) validateResourceRef(ref *corev1.ResourceFieldSelector, file bool, p *field.Path) {
	kind, known := "", slices.Contains(shownResources, ref.Resource)
	if _, k, ok := strings.Cut(ref.Resource, "."); known && ok {
		kind = k
	}
	if strings.HasPrefix(ref.Resource, "limits.hugepages-") || strings.HasPrefix(ref.Resource, "requests.hugepages-") {
		kind, known = "hugepages", true
	}
	switch {
	case file && ref.ContainerName == "":
		r.Required(p.Child("containerName"), "")
	case ref.Resource == "":
		r.Required(p.Child("resource"), "")
	case !known:
		check.Among(&r.Faults, p.Child("resource"), ref.Resource, shownResources...)
	}
	if ref.Divisor.IsZero() {
		return
	}
	at, d := p.Child("divisor"), ref.Divisor.String()
	if kind == "cpu" && d != "1m" && d != "1" {
		r.Invalid(at, ref.Resource, "only divisor's values 1m and 1 are supported with the cpu resource")
	}
	if name, ok := dividedNames[kind]; ok && !slices.Contains(divisors, d) {
		r.Invalid(at, ref.Resource, "only divisor's values "+strings.Join(divisors, ", ")+" are supported with the "+name+" resource")
	}
}

func (r *specRules) validateEnv(c *corev1.Container, p *field.Path) {
	for i := range c.Env {
		at := p.Child("env").Index(i)
		r.NeedName(at.Child("name"), c.Env[i].Name, validation.IsRelaxedEnvVarName)
		if c.Env[i].ValueFrom != nil {
			r.validateEnvSource(&c.Env[i], at.Child("valueFrom"))
		}
	}
	const prefix = true // names may be the beginning of one
	for i, e := range c.EnvFrom {
		at := p.Child("envFrom").Index(i)
		if e.Prefix != "" {
			r.Each(at.Child("prefix"), e.Prefix, validation.IsRelaxedEnvVarName(e.Prefix))
		}
		name := func(s string, at *field.Path) {
			r.NeedName(at.Child("name"), s, func(s string) []string { return apivalidation.NameIsDNSSubdomain(s, prefix) })
		}
		if e.ConfigMapRef != nil {
			name(e.ConfigMapRef.Name, at.Child("configMapRef"))
		}
		if e.SecretRef != nil {
			name(e.SecretRef.Name, at.Child("secretRef"))
		}
		switch {
		case e.ConfigMapRef == nil && e.SecretRef == nil:
			r.Invalid(p.Child("envFrom"), "", "must specify one of: `configMapRef` or `secretRef`")
		case e.ConfigMapRef != nil && e.SecretRef != nil:
			r.Invalid(p.Child("envFrom"), "", "may not have more than one field specified at a time")
		}
	}
}

func (r *specRules) validateEnvSource(e *corev1.EnvVar, p *field.Path) {
	from, n := e.ValueFrom, 0
	if from.FieldRef != nil {
		n++
		r.validateFieldRef(from.FieldRef, envFields, p.Child("fieldRef"))
	}
	if from.ResourceFieldRef != nil {
		n++
		r.validateResourceRef(from.ResourceFieldRef, false, p.Child("resourceFieldRef"))
	}
	key := func(name, key string, p *field.Path) {
		n++
		r.Subdomain(p.Child("name"), name)
		r.NeedName(p.Child("key"), key, validation.IsConfigMapKey)
	}
	if ref := from.ConfigMapKeyRef; ref != nil {
		key(ref.Name, ref.Key, p.Child("configMapKeyRef"))
	}
	if ref := from.SecretKeyRef; ref != nil {
		key(ref.Name, ref.Key, p.Child("secretKeyRef"))
	}
	if ref := from.FileKeyRef; ref != nil {
		n++
		at := p.Child("fileKeyRef")
		r.NeedName(at.Child("key"), ref.Key, validation.IsRelaxedEnvVarName)
		r.NeedName(at.Child("volumeName"), ref.VolumeName, validation.IsDNS1123Label)
		if r.Need(at.Child("path"), ref.Path) {
			NoBacksteps(&r.Faults, ref.Path, at.Child("path"))
		}
	}
	switch {
	case n == 0:
		r.Invalid(p, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
	case e.Value != "":
		r.Invalid(p, "", "may not be specified when `value` is not empty")
	case n > 1:
		r.Invalid(p, "", "may not have more than one field specified at a time")
	}
}

// validateEnvFiles: variables are read from files of emptyDir volumes only.
func (r *specRules) validateEnvFiles(p *field.Path) {
	volumes := map[string]*corev1.Volume{}
	for i := range r.spec.Volumes {
		volumes[r.spec.Volumes[i].Name] = &r.spec.Volumes[i]
	}
	eachContainer(r.spec, p, func(c *corev1.Container, at *field.Path) {
		for i, e := range c.Env {
			if e.ValueFrom == nil || e.ValueFrom.FileKeyRef == nil {
				continue
			}
			at, name := at.Child("env").Index(i).Child("valueFrom", "fileKeyRef", "volumeName"), e.ValueFrom.FileKeyRef.VolumeName
			if v := volumes[name]; v == nil {
				r.NotFound(at, name)
			} else if v.EmptyDir == nil {
				r.Invalid(at, name, "referenced volume must be of type emptyDir")
			}
		}
	})
}
