package podrules

import (
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// AccessModes are the ways in which a volume can be mounted.
var AccessModes = []corev1.PersistentVolumeAccessMode{
	corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod,
}

// ValidateAccessModes demands at least one mode; ReadWriteOncePod stands alone.
func ValidateAccessModes(modes []corev1.PersistentVolumeAccessMode, missing string, p *field.Path) field.ErrorList {
	var f check.Faults
	if len(modes) == 0 {
		f.Required(p, missing)
	}
	alone, others := false, false
	for _, m := range modes {
		check.Among(&f, p, m, AccessModes...)
		alone = alone || m == corev1.ReadWriteOncePod
		others = others || m != corev1.ReadWriteOncePod && slices.Contains(AccessModes, m)
	}
	if alone && others {
		f.Forbidden(p, "may not use ReadWriteOncePod with other access modes")
	}
	return f.List()
}

// ValidateClaimTemplate checks the claim of an ephemeral volume.
func ValidateClaimTemplate(t *corev1.PersistentVolumeClaimTemplate, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Add(ValidateTemplateMeta(&t.ObjectMeta, p.Child("metadata")))
	f.Add(ValidateClaimSpec(&t.Spec, p.Child("spec"), nil))
	return f.List()
}

// ValidateTemplateMeta checks what a template of claims says of their metadata: labels and annotations only.
func ValidateTemplateMeta(m *metav1.ObjectMeta, p *field.Path) field.ErrorList {
	var f check.Faults
	f.Add(apivalidation.ValidateAnnotations(m.Annotations, p.Child("annotations")))
	f.Labels(p.Child("labels"), m.Labels)
	meta := reflect.ValueOf(*m)
	for i := range meta.NumField() {
		name := meta.Type().Field(i).Name
		if name != "Labels" && name != "Annotations" && !meta.Field(i).IsZero() {
			f.Forbidden(p.Child(strings.ToLower(name[:1])+name[1:]), "cannot be set")
		}
	}
	return f.List()
}

// ValidateClaimSpec checks a claim, on its own or as the template of an ephemeral
// volume or a stateful set. old is nil for a creation: groups of data sources
// that are stored stay acceptable.
func ValidateClaimSpec(s *corev1.PersistentVolumeClaimSpec, p *field.Path, old *corev1.PersistentVolumeClaimSpec) field.ErrorList {
	var f check.Faults
	anyGroup := old != nil && (old.DataSource != nil && old.DataSource.APIGroup != nil || old.DataSourceRef != nil && old.DataSourceRef.APIGroup != nil)
	f.Add(selectorFaults(s.Selector, p.Child("selector")))
	f.Add(ValidateAccessModes(s.AccessModes, "at least 1 access mode is required", p.Child("accessModes")))
	storage := p.Child("resources").Key(string(corev1.ResourceStorage))
	if q, ok := s.Resources.Requests[corev1.ResourceStorage]; !ok {
		f.Required(storage, "")
	} else if q.Sign() <= 0 {
		f.Invalid(storage, q.String(), check.NotPositive)
	}
	if s.StorageClassName != nil && *s.StorageClassName != "" {
		f.Subdomain(p.Child("storageClassName"), *s.StorageClassName)
	}
	check.AmongPtr(&f, p.Child("volumeMode"), s.VolumeMode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	source := func(kind, name string, group *string, p *field.Path) {
		f.Need(p.Child("name"), name)
		f.Need(p.Child("kind"), kind)
		switch {
		case group != nil && *group != "":
			if !anyGroup {
				f.Subdomain(p.Child("apiGroup"), *group)
			}
		case kind != "PersistentVolumeClaim":
			f.Invalid(p, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup")
		}
	}
	d, ref := s.DataSource, s.DataSourceRef
	if d != nil {
		source(d.Kind, d.Name, d.APIGroup, p.Child("dataSource"))
	}
	if ref != nil {
		source(ref.Kind, ref.Name, ref.APIGroup, p.Child("dataSourceRef"))
		if ref.Namespace != nil && *ref.Namespace != "" {
			f.Label(p.Child("dataSourceRef", "namespace"), *ref.Namespace)
			if d != nil {
				f.Invalid(p, p.Child("dataSource"), "may not be specified when dataSourceRef.namespace is specified")
			}
		} else if d != nil && (d.Kind != ref.Kind || d.Name != ref.Name || !reflect.DeepEqual(d.APIGroup, ref.APIGroup)) {
			f.Invalid(p, p.Child("dataSource"), "must match dataSourceRef")
		}
	}
	if s.VolumeAttributesClassName != nil && *s.VolumeAttributesClassName != "" {
		f.Subdomain(p.Child("volumeAttributesClassName"), *s.VolumeAttributesClassName)
	}
	return f.List()
}
