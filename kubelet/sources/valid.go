package sources

import (
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// faults are those that would make files, containers or a mirror under a wrong name. The rest of what
// is wrong with a pod the API server says when it refuses the mirror, or the runtime when it cannot
// start a container.
func faults(p *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	check := func(path *field.Path, value string, rule func(string) []string) {
		for _, why := range rule(value) {
			errs = append(errs, field.Invalid(path, value, why))
		}
	}
	whole := func(rule apivalidation.ValidateNameFunc) func(string) []string {
		return func(name string) []string { return rule(name, false) }
	}
	meta, spec := field.NewPath("metadata"), field.NewPath("spec")
	check(meta.Child("name"), p.Name, whole(apivalidation.NameIsDNSSubdomain))
	check(meta.Child("namespace"), p.Namespace, whole(apivalidation.ValidateNamespaceName))
	if len(p.Spec.Containers) == 0 {
		errs = append(errs, field.Required(spec.Child("containers"), ""))
	}
	if p.Spec.RestartPolicy != corev1.RestartPolicyAlways && p.Spec.RestartPolicy != corev1.RestartPolicyOnFailure && p.Spec.RestartPolicy != corev1.RestartPolicyNever {
		errs = append(errs, field.NotSupported(spec.Child("restartPolicy"), p.Spec.RestartPolicy,
			[]corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}))
	}
	volumes := map[string]bool{}
	for i := range p.Spec.Volumes {
		name, path := p.Spec.Volumes[i].Name, spec.Child("volumes").Index(i).Child("name")
		check(path, name, validation.IsDNS1123Label)
		if volumes[name] {
			errs = append(errs, field.Duplicate(path, name))
		}
		volumes[name] = true
	}
	names := map[string]bool{}
	for _, list := range []struct {
		path       *field.Path
		containers []corev1.Container
	}{{spec.Child("initContainers"), p.Spec.InitContainers}, {spec.Child("containers"), p.Spec.Containers}} {
		for i := range list.containers {
			c, path := &list.containers[i], list.path.Index(i)
			check(path.Child("name"), c.Name, validation.IsDNS1123Label)
			if names[c.Name] {
				errs = append(errs, field.Duplicate(path.Child("name"), c.Name))
			}
			names[c.Name] = true
			if c.Image == "" {
				errs = append(errs, field.Required(path.Child("image"), ""))
			}
			for j, m := range c.VolumeMounts {
				if !volumes[m.Name] {
					errs = append(errs, field.NotFound(path.Child("volumeMounts").Index(j).Child("name"), m.Name))
				}
			}
		}
	}
	return errs
}

// needsAPI names what of the API server a pod refers to, "" for a pod that can run without one.
// Source: upstream's rule for static pods (feature PreventStaticPodAPIReferences), its names and their order.
func needsAPI(s *corev1.PodSpec) string {
	secrets, maps, volumes := len(s.ImagePullSecrets) > 0, false, ""
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			for _, from := range list[i].EnvFrom {
				secrets, maps = secrets || from.SecretRef != nil, maps || from.ConfigMapRef != nil
			}
			for _, e := range list[i].Env {
				if e.ValueFrom != nil {
					secrets, maps = secrets || e.ValueFrom.SecretKeyRef != nil, maps || e.ValueFrom.ConfigMapKeyRef != nil
				}
			}
		}
	}
	other := func(what string) {
		if volumes == "" {
			volumes = what
		}
	}
	for i := range s.Volumes {
		v := &s.Volumes[i]
		secrets, maps = secrets || v.Secret != nil, maps || v.ConfigMap != nil
		switch {
		case v.CSI != nil:
			secrets = secrets || v.CSI.NodePublishSecretRef != nil
			other("csidrivers (via CSI volumes)")
		case v.PersistentVolumeClaim != nil:
			other("persistentvolumeclaims")
		case v.Ephemeral != nil:
			other("persistentvolumeclaims (via ephemeral volumes)")
		case v.Projected != nil:
			for _, from := range v.Projected.Sources {
				secrets, maps = secrets || from.Secret != nil, maps || from.ConfigMap != nil
				switch {
				case from.ServiceAccountToken != nil:
					other("serviceaccounts (via projected volumes)")
				case from.ClusterTrustBundle != nil:
					other("clustertrustbundles")
				case from.PodCertificate != nil:
					other("podcertificates")
				}
			}
		}
	}
	switch {
	case s.ServiceAccountName != "":
		return "serviceaccounts"
	case secrets:
		return "secrets"
	case maps:
		return "configmaps"
	case len(s.ResourceClaims) > 0:
		return "resourceclaims"
	}
	return volumes
}
