package resources

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

type claim = corev1.PersistentVolumeClaim

var persistentVolumeClaims = Resource[claim]{
	Group: "", Version: "v1", Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims", WholeMeta: true, Short: []string{"pvc"},
	List: listOf[corev1.PersistentVolumeClaimList], NoGeneration: true,
	Default: defaultClaim,
	Main: Part[claim]{
		Prepare: func(rq *Request, obj, old *claim) {
			if old == nil {
				obj.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
			} else {
				obj.Status = old.Status
			}
			dropForeignSources(&obj.Spec, old)
			alignDataSource(&obj.Spec)
		},
		Validate: withoutRequest(validateClaim),
		Warnings: func(_ *Request, c, _ *claim) []string { return podrules.ClaimWarnings(&c.Spec, field.NewPath("spec")) },
		Reset:    []string{"status"},
	},
	Status: statusPart(func(c *claim) *corev1.PersistentVolumeClaimSpec { return &c.Spec }, validateClaimStatus),
	Docs: map[string]string{
		"Status":                corev1.PersistentVolumeClaimStatus{}.SwaggerDoc()["phase"],
		"Volume":                corev1.PersistentVolumeClaimSpec{}.SwaggerDoc()["volumeName"],
		"Capacity":              corev1.PersistentVolumeClaimStatus{}.SwaggerDoc()["capacity"],
		"Access Modes":          corev1.PersistentVolumeClaimStatus{}.SwaggerDoc()["accessModes"],
		"StorageClass":          corev1.PersistentVolumeClaimSpec{}.SwaggerDoc()["storageClassName"],
		"VolumeAttributesClass": corev1.PersistentVolumeClaimSpec{}.SwaggerDoc()["volumeAttributesClassName"],
		"VolumeMode":            corev1.PersistentVolumeClaimSpec{}.SwaggerDoc()["volumeMode"],
	},
	Columns: []Column[claim]{
		text("Status", func(c *claim) string {
			if c.DeletionTimestamp != nil {
				return "Terminating"
			}
			return string(c.Status.Phase)
		}),
		text("Volume", func(c *claim) string { return c.Spec.VolumeName }),
		text("Capacity", func(c *claim) string {
			if c.Spec.VolumeName == "" {
				return ""
			}
			return quantityText(c.Status.Capacity[corev1.ResourceStorage])
		}),
		text("Access Modes", func(c *claim) string {
			if c.Spec.VolumeName == "" {
				return ""
			}
			return accessModesText(c.Status.AccessModes)
		}),
		text("StorageClass", func(c *claim) string { return classOf(c.Annotations, c.Spec.StorageClassName) }),
		text("VolumeAttributesClass", func(c *claim) string { return valueOr(c.Spec.VolumeAttributesClassName, "<unset>") }),
		ageColumn[claim](),
		wide(text("VolumeMode", func(c *claim) string { return string(valueOr(c.Spec.VolumeMode, "<unset>")) })),
	},
}

func defaultClaim(c *claim) {
	def(&c.Status.Phase, corev1.ClaimPending)
	defPtr(&c.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	for _, l := range []corev1.ResourceList{c.Spec.Resources.Limits, c.Spec.Resources.Requests, c.Status.Capacity, c.Status.AllocatedResources} {
		podrules.RoundUp(l)
	}
}

// alignDataSource keeps dataSource and dataSourceRef in step where both can say the same.
func alignDataSource(s *corev1.PersistentVolumeClaimSpec) {
	switch d, ref := s.DataSource, s.DataSourceRef; {
	case ref != nil && ref.Namespace != nil && *ref.Namespace != "":
	case d != nil && ref == nil:
		s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: d.APIGroup, Kind: d.Kind, Name: d.Name}
	case d == nil && ref != nil:
		s.DataSource = &corev1.TypedLocalObjectReference{APIGroup: ref.APIGroup, Kind: ref.Kind, Name: ref.Name}
	}
}

// dropForeignSources ignores a source in another namespace (the gate
// CrossNamespaceVolumeDataSource is closed in 1.36), and what clients that know
// dataSource alone may not say in it. What is stored stays.
// Source: KEP-1495.
func dropForeignSources(s *corev1.PersistentVolumeClaimSpec, old *claim) {
	if ref := s.DataSourceRef; ref != nil && valueOr(ref.Namespace, "") != "" && (old == nil || old.Spec.DataSourceRef == nil) {
		s.DataSourceRef = nil
	}
	if s.DataSource == nil || s.DataSourceRef != nil || old != nil && (old.Spec.DataSource != nil || old.Spec.DataSourceRef != nil) {
		return
	}
	switch kind, group := s.DataSource.Kind, valueOr(s.DataSource.APIGroup, ""); {
	case kind == "PersistentVolumeClaim" && group == "":
	case kind == "VolumeSnapshot" && group == "snapshot.storage.k8s.io":
	default:
		s.DataSource = nil
	}
}

// classOf prefers the old annotation to the field.
func classOf(annotations map[string]string, name *string) string {
	if c, ok := annotations[corev1.BetaStorageClassAnnotation]; ok {
		return c
	}
	return valueOr(name, "")
}

func validateClaim(c, old *claim) field.ErrorList {
	var f check.Faults
	p := field.NewPath("spec")
	if old == nil {
		f.Add(podrules.ValidateClaimSpec(&c.Spec, p, nil))
		return f.List()
	}
	f.Add(podrules.ValidateClaimSpec(&c.Spec, p, &old.Spec))
	// A claim may be bound, a bound one may change its size and attributes class; nothing else.
	rest, was := c.Spec.DeepCopy(), old.Spec.DeepCopy()
	if was.VolumeName == "" {
		was.VolumeName = rest.VolumeName
	}
	f.Add(validateClassChange(c, old, rest))
	if c.Status.Phase == corev1.ClaimBound {
		if rest.Resources.Requests != nil {
			rest.Resources.Requests[corev1.ResourceStorage] = was.Resources.Requests[corev1.ResourceStorage]
		}
		rest.VolumeAttributesClassName = was.VolumeAttributesClassName
	}
	if !equality.Semantic.DeepEqual(*rest, *was) {
		f.Forbidden(p, fmt.Sprintf("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v", diff.Diff(check.Shown(*was), check.Shown(*rest))))
	}
	size, capacity := c.Spec.Resources.Requests[corev1.ResourceStorage], old.Status.Capacity[corev1.ResourceStorage]
	if size.Cmp(old.Spec.Resources.Requests[corev1.ResourceStorage]) < 0 && size.Cmp(capacity) <= 0 {
		f.Forbidden(p.Child("resources", "requests", "storage"), "field can not be less than status.capacity")
	}
	f.Same(field.NewPath("volumeMode"), c.Spec.VolumeMode, old.Spec.VolumeMode)
	at, class := p.Child("volumeAttributesClassName"), c.Spec.VolumeAttributesClassName
	switch {
	case old.Status.CurrentVolumeAttributesClassName == nil || equality.Semantic.DeepEqual(class, old.Spec.VolumeAttributesClassName):
	case class == nil:
		f.Forbidden(at, "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil")
	case *class == "":
		f.Forbidden(at, "update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil")
	}
	return f.List()
}

// validateClassChange lets a claim without a class get one, and moves the class
// of a claim from the old annotation to the field; rest is then put back.
func validateClassChange(c, old *claim, rest *corev1.PersistentVolumeClaimSpec) field.ErrorList {
	var f check.Faults
	was, annotated := old.Annotations[corev1.BetaStorageClassAnnotation]
	now, kept := c.Annotations[corev1.BetaStorageClassAnnotation]
	given := old.Spec.StorageClassName == nil && c.Spec.StorageClassName != nil
	if given && annotated && *c.Spec.StorageClassName == was && (!kept || now == was) {
		rest.StorageClassName = nil
		return nil
	}
	if now != was {
		f.Invalid(field.NewPath("metadata", "annotations").Key(corev1.BetaStorageClassAnnotation), now, check.Immutable)
	}
	if given && (!annotated || *c.Spec.StorageClassName == was) {
		rest.StorageClassName = nil
	}
	return f.List()
}

// resizeStates are the states of a resize that status.allocatedResourceStatuses may name.
var resizeStates = []corev1.ClaimResourceStatus{
	corev1.PersistentVolumeClaimControllerResizeInProgress, corev1.PersistentVolumeClaimControllerResizeInfeasible,
	corev1.PersistentVolumeClaimNodeResizeInProgress, corev1.PersistentVolumeClaimNodeResizeInfeasible, corev1.PersistentVolumeClaimNodeResizePending,
}

func validateClaimStatus(c, _ *claim) field.ErrorList {
	var f check.Faults
	p := field.NewPath("status")
	if len(c.Spec.AccessModes) == 0 {
		f.Required(field.NewPath("Spec", "accessModes"), "")
	}
	sound := func(q resource.Quantity, at *field.Path) bool {
		if q.Sign() < 0 {
			f.Invalid(at, q.Value(), "must be a valid resource quantity")
		}
		return q.Sign() >= 0
	}
	for name, q := range c.Status.Capacity {
		sound(q, p.Child("capacity").Key(string(name)))
	}
	// Of the names without a domain only storage can be resized.
	resizable := func(name corev1.ResourceName, at *field.Path) bool {
		if msgs := validation.IsQualifiedName(string(name)); len(msgs) > 0 {
			f.Each(at, string(name), msgs)
			return false
		}
		if podrules.IsNative(name) && name != corev1.ResourceStorage {
			f.Add(field.ErrorList{field.NotSupported(at, string(name), []corev1.ResourceName{corev1.ResourceStorage})})
			return false
		}
		return true
	}
	for name, state := range c.Status.AllocatedResourceStatuses {
		at := p.Child("allocatedResourceStatuses")
		resizable(name, at)
		if !slices.Contains(resizeStates, state) {
			f.Add(field.ErrorList{field.NotSupported(at, name, resizeStates)})
		}
	}
	for name, q := range c.Status.AllocatedResources {
		if at := p.Child("allocatedResources"); resizable(name, at) && sound(q, at.Key(string(name))) {
			f.Add(podrules.ValidateQuantity(corev1.ResourceStorage, q, at.Key(string(name))))
		}
	}
	return f.List()
}
