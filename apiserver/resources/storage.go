package resources

import (
	"math"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
	"github.com/keelson/keelson/apiserver/resources/podrules"
)

// The kinds of storage.k8s.io that describe drivers and classes.

func metaTime(t time.Time) metav1.Time { return metav1.NewTime(t) }

// defaultNameColumn marks the default of a kind of classes after its name.
func defaultNameColumn[T any](annotations ...string) Column[T] {
	c := nameColumn[T]()
	c.Cell = func(o *T, _ time.Time) any {
		obj := any(o).(Object)
		for _, a := range annotations {
			if obj.GetAnnotations()[a] == "true" {
				return obj.GetName() + " (default)"
			}
		}
		return obj.GetName()
	}
	return c
}

// parameters bounds what is handed to a driver.
func parameters(f *check.Faults, m map[string]string, p *field.Path) {
	const maxCount, maxBytes = 512, 256 << 10
	if len(m) > maxCount {
		f.TooLong(p, "", maxCount)
		return
	}
	total := 0
	for k, v := range m {
		if k == "" {
			f.Invalid(p, k, "field can not be empty.")
		}
		total += len(k) + len(v)
	}
	if total > maxBytes {
		f.TooLong(p, "", maxBytes)
	}
}

// topologies: each term says something, and something else than those before it.
func topologies(f *check.Faults, list []corev1.TopologySelectorTerm, p *field.Path) {
	var before []map[string]sets.Set[string]
	for i, t := range list {
		p := p.Index(i).Child("matchLabelExpressions")
		term := map[string]sets.Set[string]{}
		for j, e := range t.MatchLabelExpressions {
			at, values := p.Index(j), sets.Set[string]{}
			if len(e.Values) == 0 {
				f.Required(at.Child("values"), "")
			}
			for k, v := range e.Values {
				if values.Has(v) {
					f.Duplicate(at.Child("values").Index(k), v)
				}
				values.Insert(v)
			}
			f.LabelName(at.Child("key"), e.Key)
			if term[e.Key] != nil {
				f.Duplicate(at.Child("key"), e.Key)
			}
			term[e.Key] = values
		}
		same := func(other map[string]sets.Set[string]) bool { return equality.Semantic.DeepEqual(other, term) }
		if len(term) == 0 || slices.ContainsFunc(before, same) {
			f.Duplicate(p, "")
		}
		before = append(before, term)
	}
}

var storageClasses = Resource[storagev1.StorageClass]{
	Group: "storage.k8s.io", Version: "v1", Kind: "StorageClass", Plural: "storageclasses", WholeMeta: true, Prefix: "storageclasses",
	Short: []string{"sc"}, Scope: Cluster, NoGeneration: true, List: listOf[storagev1.StorageClassList],
	Default: func(c *storagev1.StorageClass) {
		defPtr(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
		defPtr(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
	},
	Main: plainPart(func(c, old *storagev1.StorageClass) field.ErrorList {
		var f check.Faults
		at := field.NewPath
		if f.Need(at("provisioner"), c.Provisioner) {
			f.QualifiedName(at("provisioner"), strings.ToLower(c.Provisioner))
		}
		parameters(&f, c.Parameters, at("parameters"))
		check.AmongOrEmpty(&f, at("reclaimPolicy"), valueOr(c.ReclaimPolicy, ""), corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)
		if c.VolumeBindingMode == nil {
			f.Required(at("volumeBindingMode"), "")
		}
		check.AmongPtr(&f, at("volumeBindingMode"), c.VolumeBindingMode, storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)
		topologies(&f, c.AllowedTopologies, at("allowedTopologies"))
		if old == nil {
			return f.List()
		}
		f.Same(at("parameters"), c.Parameters, old.Parameters)
		f.Same(at("provisioner"), c.Provisioner, old.Provisioner)
		f.Same(at("reclaimPolicy"), c.ReclaimPolicy, old.ReclaimPolicy)
		f.Same(at("volumeBindingMode"), c.VolumeBindingMode, old.VolumeBindingMode)
		return f.List()
	}),
	Docs: map[string]string{
		"Provisioner":          storagev1.StorageClass{}.SwaggerDoc()["provisioner"],
		"ReclaimPolicy":        storagev1.StorageClass{}.SwaggerDoc()["reclaimPolicy"],
		"VolumeBindingMode":    storagev1.StorageClass{}.SwaggerDoc()["volumeBindingMode"],
		"AllowVolumeExpansion": storagev1.StorageClass{}.SwaggerDoc()["allowVolumeExpansion"],
	},
	Columns: []Column[storagev1.StorageClass]{
		defaultNameColumn[storagev1.StorageClass]("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"),
		text("Provisioner", func(c *storagev1.StorageClass) string { return c.Provisioner }),
		text("ReclaimPolicy", func(c *storagev1.StorageClass) string {
			return string(valueOr(c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete))
		}),
		text("VolumeBindingMode", func(c *storagev1.StorageClass) string {
			return string(valueOr(c.VolumeBindingMode, storagev1.VolumeBindingImmediate))
		}),
		declaredText(boolean("AllowVolumeExpansion", func(c *storagev1.StorageClass) bool { return valueOr(c.AllowVolumeExpansion, false) })),
		ageColumn[storagev1.StorageClass](),
	},
}

// boolean makes a column of booleans.
func boolean[T any](name string, cell func(*T) bool) Column[T] {
	return Column[T]{Name: name, Type: "boolean", Cell: func(o *T, _ time.Time) any { return cell(o) }}
}

var volumeAttributesClasses = Resource[storagev1.VolumeAttributesClass]{
	Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttributesClass", Plural: "volumeattributesclasses", WholeMeta: true, Prefix: "volumeattributesclasses",
	Short: []string{"vac"}, Scope: Cluster, NoGeneration: true, List: listOf[storagev1.VolumeAttributesClassList],
	Main: plainPart(func(c, old *storagev1.VolumeAttributesClass) field.ErrorList {
		var f check.Faults
		if f.Need(field.NewPath("driverName"), c.DriverName) {
			f.QualifiedName(field.NewPath("driverName"), strings.ToLower(c.DriverName))
		}
		if len(c.Parameters) == 0 {
			f.Required(field.NewPath("parameters"), "must contain at least one key/value pair")
		}
		parameters(&f, c.Parameters, field.NewPath("parameters"))
		if old != nil && c.DriverName != old.DriverName {
			f.Forbidden(field.NewPath("driverName"), "updates to driverName are forbidden.")
		}
		if old != nil && !equality.Semantic.DeepEqual(c.Parameters, old.Parameters) {
			f.Forbidden(field.NewPath("parameters"), "updates to parameters are forbidden.")
		}
		return f.List()
	}),
	Docs: map[string]string{
		"DriverName": storagev1.VolumeAttributesClass{}.SwaggerDoc()["driverName"],
	},
	Columns: []Column[storagev1.VolumeAttributesClass]{
		defaultNameColumn[storagev1.VolumeAttributesClass]("volumeattributesclass.alpha.kubernetes.io/is-default-class"),
		text("DriverName", func(c *storagev1.VolumeAttributesClass) string { return c.DriverName }),
		ageColumn[storagev1.VolumeAttributesClass](),
	},
}

var csiNodes = Resource[storagev1.CSINode]{
	Group: "storage.k8s.io", Version: "v1", Kind: "CSINode", Plural: "csinodes", WholeMeta: true, Prefix: "csinodes", Scope: Cluster,
	NoGeneration: true, NeedsVersion: true, List: listOf[storagev1.CSINodeList],
	Main: plainPart(func(n, old *storagev1.CSINode) field.ErrorList {
		var f check.Faults
		p := field.NewPath("spec", "drivers")
		was := map[string]storagev1.CSINodeDriver{}
		if old != nil {
			for _, d := range old.Spec.Drivers {
				was[d.Name] = d
			}
		}
		names := check.Seen[string]{}
		for i, d := range n.Spec.Drivers {
			at := p.Index(i)
			f.Add(podrules.ValidateCSIDriverName(d.Name, at.Child("name")))
			if f.Need(at.Child("nodeID"), d.NodeID) && len(d.NodeID) > 256 {
				f.Invalid(at.Child("nodeID"), d.NodeID, "must be 256 characters or less")
			}
			if d.Allocatable != nil {
				check.AtLeastZeroPtr(&f, at.Child("allocatable", "count"), d.Allocatable.Count)
			}
			if names.Again(d.Name) {
				f.Duplicate(at.Child("name"), d.Name)
			}
			keys := check.Seen[string]{}
			for _, k := range d.TopologyKeys {
				f.Need(at, k)
				if keys.Again(k) {
					f.Duplicate(at, k)
				}
				f.QualifiedName(at, k)
			}
			if o, ok := was[d.Name]; ok {
				o.Allocatable, d.Allocatable = nil, nil
				f.Same(p, d, o)
			}
		}
		return f.List()
	}),
	Docs: map[string]string{
		"Drivers": "How many CSI drivers have registered.",
	},
	Columns: []Column[storagev1.CSINode]{
		number("Drivers", func(n *storagev1.CSINode) int { return len(n.Spec.Drivers) }),
		ageColumn[storagev1.CSINode](),
	},
}

func csiDriverWarnings(_ *Request, d, old *storagev1.CSIDriver) []string {
	if len(d.Spec.TokenRequests) == 0 || d.Spec.ServiceAccountTokenInSecrets != nil ||
		old != nil && equality.Semantic.DeepEqual(old.Spec.TokenRequests, d.Spec.TokenRequests) {
		return nil
	}
	return []string{"spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes"}
}

var csiDrivers = Resource[storagev1.CSIDriver]{
	Group: "storage.k8s.io", Version: "v1", Kind: "CSIDriver", Plural: "csidrivers", Prefix: "csidrivers", Scope: Cluster, NoGeneration: true,
	NeedsVersion: true, List: listOf[storagev1.CSIDriverList],
	Default: func(d *storagev1.CSIDriver) {
		s := &d.Spec
		defPtr(&s.AttachRequired, true)
		defPtr(&s.PodInfoOnMount, false)
		defPtr(&s.StorageCapacity, false)
		defPtr(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
		if len(s.VolumeLifecycleModes) == 0 {
			s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
		}
		defPtr(&s.RequiresRepublish, false)
		defPtr(&s.SELinuxMount, false)
	},
	Main: Part[storagev1.CSIDriver]{Prepare: func(_ *Request, d, old *storagev1.CSIDriver) {
		if old == nil || old.Spec.PreventPodSchedulingIfMissing == nil {
			d.Spec.PreventPodSchedulingIfMissing = nil // the gate VolumeLimitScaling is closed in 1.36
		}
		if old != nil && !equality.Semantic.DeepEqual(d.Spec, old.Spec) { // counted from none on: its creation is no generation
			d.Generation = old.Generation + 1
		}
	}, Warnings: csiDriverWarnings, Validate: withoutRequest(func(d, old *storagev1.CSIDriver) field.ErrorList {
		var f check.Faults
		s, p := &d.Spec, field.NewPath("spec")
		for name, v := range map[string]*bool{"attachedRequired": s.AttachRequired, "podInfoOnMount": s.PodInfoOnMount, "storageCapacity": s.StorageCapacity, "seLinuxMount": s.SELinuxMount} {
			if v == nil {
				f.Required(p.Child(name), "")
			}
		}
		check.AmongPtr(&f, p.Child("fsGroupPolicy"), s.FSGroupPolicy, storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
		for _, m := range s.VolumeLifecycleModes {
			check.Listed(&f, p.Child("volumeLifecycleModes"), m, storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral)
		}
		audiences := check.Seen[string]{}
		for i, t := range s.TokenRequests {
			at := p.Child("tokenRequests").Index(i)
			if audiences.Again(t.Audience) {
				f.Duplicate(at.Child("audience"), t.Audience)
			}
			if e := t.ExpirationSeconds; e != nil {
				at := at.Child("expirationSeconds")
				if *e < 600 {
					f.Invalid(at, *e, "may not specify a duration less than 10 minutes")
				} else if *e > 1<<32 {
					f.Invalid(at, *e, "may not specify a duration larger than 2^32 seconds")
				}
			}
		}
		if t := s.NodeAllocatableUpdatePeriodSeconds; t != nil && *t < 10 {
			f.Invalid(p.Child("nodeAllocatableUpdatePeriodSeconds"), *t, "must be greater than or equal to 10 seconds")
		}
		if s.ServiceAccountTokenInSecrets != nil && len(s.TokenRequests) == 0 {
			f.Invalid(p.Child("serviceAccountTokenInSecrets"), s.ServiceAccountTokenInSecrets, "serviceAccountTokenInSecrets is set but no tokenRequests are specified")
		}
		if old != nil {
			f.Same(p.Child("attachedRequired"), s.AttachRequired, old.Spec.AttachRequired)
			f.Same(p.Child("volumeLifecycleModes"), s.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes)
		}
		return f.List()
	})},
	Docs: map[string]string{
		"AttachRequired":    storagev1.CSIDriverSpec{}.SwaggerDoc()["attachRequired"],
		"PodInfoOnMount":    storagev1.CSIDriverSpec{}.SwaggerDoc()["podInfoOnMount"],
		"StorageCapacity":   storagev1.CSIDriverSpec{}.SwaggerDoc()["storageCapacity"],
		"TokenRequests":     storagev1.CSIDriverSpec{}.SwaggerDoc()["tokenRequests"],
		"RequiresRepublish": storagev1.CSIDriverSpec{}.SwaggerDoc()["requiresRepublish"],
		"Modes":             storagev1.CSIDriverSpec{}.SwaggerDoc()["volumeLifecycleModes"],
	},
	Columns: []Column[storagev1.CSIDriver]{
		boolean("AttachRequired", func(d *storagev1.CSIDriver) bool { return valueOr(d.Spec.AttachRequired, true) }),
		boolean("PodInfoOnMount", func(d *storagev1.CSIDriver) bool { return valueOr(d.Spec.PodInfoOnMount, false) }),
		boolean("StorageCapacity", func(d *storagev1.CSIDriver) bool { return valueOr(d.Spec.StorageCapacity, false) }),
		text("TokenRequests", func(d *storagev1.CSIDriver) string {
			if d.Spec.TokenRequests == nil {
				return "<unset>"
			}
			var out []string
			for _, t := range d.Spec.TokenRequests {
				out = append(out, t.Audience)
			}
			return strings.Join(out, ",")
		}),
		boolean("RequiresRepublish", func(d *storagev1.CSIDriver) bool { return valueOr(d.Spec.RequiresRepublish, false) }),
		text("Modes", func(d *storagev1.CSIDriver) string {
			var out []string
			for _, m := range d.Spec.VolumeLifecycleModes {
				out = append(out, string(m))
			}
			return joinOr(out, "<none>")
		}),
		ageColumn[storagev1.CSIDriver](),
	},
}

var csiStorageCapacities = Resource[storagev1.CSIStorageCapacity]{
	Group: "storage.k8s.io", Version: "v1", Kind: "CSIStorageCapacity", Plural: "csistoragecapacities", WholeMeta: true, Prefix: "csistoragecapacities",
	NoGeneration: true, NeedsVersion: true, List: listOf[storagev1.CSIStorageCapacityList],
	Main: plainPart(func(c, old *storagev1.CSIStorageCapacity) field.ErrorList {
		var f check.Faults
		f.Subdomain(field.NewPath("storageClassName"), c.StorageClassName)
		f.Add(selectorFaults(c.NodeTopology, field.NewPath("nodeTopology")))
		if c.Capacity != nil {
			f.Quantity(field.NewPath("capacity"), *c.Capacity)
		}
		if old != nil {
			f.Same(field.NewPath("nodeTopology"), c.NodeTopology, old.NodeTopology)
			f.Same(field.NewPath("storageClassName"), c.StorageClassName, old.StorageClassName)
		}
		return f.List()
	}),
	Columns: []Column[storagev1.CSIStorageCapacity]{createdAtColumn[storagev1.CSIStorageCapacity]()},
}

const attachmentMetadataMax = 256 << 10

// validateVolumeError: the bound that a long message is told is that of the metadata beside it, as upstream has it.
func validateVolumeError(f *check.Faults, e *storagev1.VolumeError, p *field.Path) {
	if e == nil {
		return
	}
	if len(e.Message) > 1024 {
		f.TooLong(p.Child("message"), "", attachmentMetadataMax)
	}
	if c := e.ErrorCode; c != nil && *c < 0 {
		f.Invalid(p.Child("errorCode"), *c, validation.InclusiveRangeError(0, math.MaxInt32))
	}
}

var volumeAttachments = Resource[storagev1.VolumeAttachment]{
	Group: "storage.k8s.io", Version: "v1", Kind: "VolumeAttachment", LooseMeta: true, Plural: "volumeattachments", WholeMeta: true, Prefix: "volumeattachments", Scope: Cluster,
	NoGeneration: true, NeedsVersion: true, List: listOf[storagev1.VolumeAttachmentList],
	Main: mainPart(func(a *storagev1.VolumeAttachment) *storagev1.VolumeAttachmentStatus { return &a.Status }, func(a, old *storagev1.VolumeAttachment) field.ErrorList {
		var f check.Faults
		s, p := &a.Spec, field.NewPath("spec")
		f.Add(podrules.ValidateCSIDriverName(s.Attacher, p.Child("attacher")))
		at, pv := p.Child("source"), s.Source.PersistentVolumeName
		const one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName"
		switch {
		case s.Source.InlineVolumeSpec == nil && pv == nil:
			f.Required(at, one)
		case s.Source.InlineVolumeSpec != nil && pv != nil:
			f.Forbidden(at, one)
		case pv != nil:
			if *pv == "" {
				f.Required(at.Child("persistentVolumeName"), "must specify non empty persistentVolumeName")
			}
			f.Subdomain(at.Child("persistentVolumeName"), *pv)
		default:
			validateInlineVolume(&f, s.Source.InlineVolumeSpec, at.Child("inlineVolumeSpec"))
		}
		f.Subdomain(p.Child("nodeName"), s.NodeName)
		if old != nil {
			f.Same(p, a.Spec, old.Spec)
		}
		return f.List()
	}),
	Status: keepMeta(statusPart(func(a *storagev1.VolumeAttachment) *storagev1.VolumeAttachmentSpec { return &a.Spec }, func(a, _ *storagev1.VolumeAttachment) field.ErrorList {
		var f check.Faults
		p, size := field.NewPath("status"), 0
		for k, v := range a.Status.AttachmentMetadata {
			size += len(k) + len(v)
		}
		if size > attachmentMetadataMax {
			f.TooLong(p.Child("attachmentMetadata"), "", attachmentMetadataMax)
		}
		validateVolumeError(&f, a.Status.AttachError, p.Child("attachError"))
		validateVolumeError(&f, a.Status.DetachError, p.Child("detachError"))
		return f.List()
	})),
	Docs: map[string]string{
		"Attacher": storagev1.VolumeAttachmentSpec{}.SwaggerDoc()["attacher"],
		"PV":       storagev1.VolumeAttachmentSource{}.SwaggerDoc()["persistentVolumeName"],
		"Node":     storagev1.VolumeAttachmentSpec{}.SwaggerDoc()["nodeName"],
		"Attached": storagev1.VolumeAttachmentStatus{}.SwaggerDoc()["attached"],
	},
	Columns: []Column[storagev1.VolumeAttachment]{
		named(text("Attacher", func(a *storagev1.VolumeAttachment) string { return a.Spec.Attacher })),
		text("PV", func(a *storagev1.VolumeAttachment) string { return valueOr(a.Spec.Source.PersistentVolumeName, "") }),
		text("Node", func(a *storagev1.VolumeAttachment) string { return a.Spec.NodeName }),
		boolean("Attached", func(a *storagev1.VolumeAttachment) bool { return a.Status.Attached }),
		ageColumn[storagev1.VolumeAttachment](),
	},
}
