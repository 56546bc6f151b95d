// Package persistentvolume binds claims to volumes, asks provisioners for volumes
// that are missing, and says what becomes of volumes whose claim is gone.
//
// A binding is two pointers that must agree: the volume's spec.claimRef (with the
// claim's UID) and the claim's spec.volumeName. The volume is always written first;
// whoever finds half a binding completes it. Two claims that choose the same volume
// at the same time are told apart by the volume's resourceVersion: the loser chooses
// again.
//
// [Claim] and [Volume] decide and are pure. What fits a claim is the question that
// the scheduler asks too, and is answered by k8s.io/component-helpers for both.
// There are no provisioners, deleters or recyclers in this process: volumes of CSI
// drivers are made and deleted by the drivers' own controllers, which act on what is
// written here.
//
// Source: Kubernetes documentation, "Persistent Volumes" and "Storage Classes".
package persistentvolume

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	storage "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// Reasons of events.
const (
	failedBinding        = "FailedBinding"
	volumeMismatch       = "VolumeMismatch"
	failedRecycle        = "VolumeFailedRecycle"
	failedDelete         = "VolumeFailedDelete"
	externalProvisioning = "ExternalProvisioning"
	provisioningFailed   = "ProvisioningFailed"
	waitForConsumer      = "WaitForFirstConsumer"
	waitForPod           = "WaitForPodScheduled"
)

// preResize is the size that a claim shows while its volume is being enlarged.
const preResize = "volume.alpha.kubernetes.io/pre-resize-capacity"

// Action is the kind of a step.
type Action string

// The actions. A claim's or volume's new state is in the step.
const (
	Bind         Action = "bind"          // all that binds Volume and Claim, as far as it is missing
	Unbind       Action = "unbind"        // take Volume away from its claim
	VolumePhase  Action = "volume phase"  // set Volume's phase
	ClaimPhase   Action = "claim phase"   // set Claim's phase, and forget what a volume gave it
	SetClass     Action = "set class"     // give Claim the default class
	AskProvision Action = "ask provision" // tell Claim's provisioner to make a volume
	Tell         Action = "tell"          // an event and nothing else
	ClaimsTurn   Action = "claim's turn"  // Claim has to be looked at
)

// Step is one thing to do.
type Step struct {
	Do     Action
	Volume *corev1.PersistentVolume
	Claim  *corev1.PersistentVolumeClaim
	Value  string // phase, class or provisioner
	Event  *Event // told when the step has been done
}

// Event is told about Step's claim, or its volume where OnVolume says so.
type Event struct {
	OnVolume              bool
	Type, Reason, Message string
}

func (s Step) String() string {
	var b strings.Builder
	b.WriteString(string(s.Do))
	if s.Volume != nil {
		b.WriteString(" volume " + s.Volume.Name)
	}
	if s.Claim != nil {
		b.WriteString(" claim " + s.Claim.Namespace + "/" + s.Claim.Name)
	}
	if s.Value != "" {
		b.WriteString(" " + s.Value)
	}
	if s.Event != nil {
		b.WriteString(" (" + s.Event.Reason + ")")
	}
	return b.String()
}

func warn(reason, format string, args ...any) *Event {
	return &Event{Type: corev1.EventTypeWarning, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func normal(reason, format string, args ...any) *Event {
	return &Event{Type: corev1.EventTypeNormal, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// View is what a decision about a claim looks at.
type View struct {
	Volumes func() []*corev1.PersistentVolume
	Volume  func(name string) *corev1.PersistentVolume
	Class   func(name string) *storagev1.StorageClass
	Classes func() []*storagev1.StorageClass
	Waiting []string // names of pods that use the claim and have no node yet
}

// Claim decides what to do about a claim.
func Claim(c *corev1.PersistentVolumeClaim, v View) ([]Step, error) {
	if _, bound := c.Annotations[storage.AnnBindCompleted]; bound {
		return boundClaim(c, v), nil
	}
	if c.Spec.VolumeName != "" {
		return prebound(c, v), nil
	}
	delayed, err := delayed(c, v)
	if err != nil {
		return nil, err
	}
	match, err := best(c, v.Volumes(), delayed)
	if err != nil {
		return nil, err
	}
	if match != nil {
		return []Step{{Do: Bind, Volume: match, Claim: c}}, nil
	}
	if !storage.PersistentVolumeClaimHasClass(c) {
		if d := defaultClass(v.Classes()); d != nil {
			return []Step{{Do: SetClass, Claim: c, Value: d.Name}}, nil
		}
	}
	pending := Step{Do: ClaimPhase, Claim: c, Value: string(corev1.ClaimPending)}
	class := storage.GetPersistentVolumeClaimClass(c)
	switch {
	case delayed && !storage.IsDelayBindingProvisioning(c):
		pending.Event = normal(waitForConsumer, "waiting for first consumer to be created before binding")
		if n := len(v.Waiting); n == 1 {
			pending.Event = normal(waitForPod, "waiting for pod %s to be scheduled", v.Waiting[0])
		} else if n > 1 {
			pending.Event = normal(waitForPod, "waiting for pods %s to be scheduled", strings.Join(v.Waiting, ","))
		}
	case class == "":
		pending.Event = normal(failedBinding, "no persistent volumes available for this claim and no storage class is set")
	default:
		return []Step{provision(c, class, v.Class(class))}, nil
	}
	return []Step{pending}, nil
}

// provision asks the class's provisioner for a volume.
func provision(c *corev1.PersistentVolumeClaim, name string, class *storagev1.StorageClass) Step {
	switch {
	case class == nil:
		return Step{Do: Tell, Claim: c, Event: warn(provisioningFailed, "storageclass.storage.k8s.io %q not found", name)}
	case strings.HasPrefix(class.Provisioner, "kubernetes.io/"):
		return Step{Do: Tell, Claim: c, Event: warn(provisioningFailed, "no volume plugin matched name: %s", class.Provisioner)}
	}
	return Step{Do: AskProvision, Claim: c, Value: class.Provisioner, Event: normal(externalProvisioning,
		"Waiting for a volume to be created either by the external provisioner '%s' or manually by the system administrator. "+
			"If volume creation is delayed, please verify that the provisioner is running and correctly registered.", class.Provisioner)}
}

// prebound decides on a claim that names its volume and is not bound to it yet.
func prebound(c *corev1.PersistentVolumeClaim, v View) []Step {
	pending := Step{Do: ClaimPhase, Claim: c, Value: string(corev1.ClaimPending)}
	volume := v.Volume(c.Spec.VolumeName)
	switch {
	case volume == nil:
	case volume.Spec.ClaimRef == nil:
		why := misfit(volume, c)
		if why == "" {
			return []Step{{Do: Bind, Volume: volume, Claim: c}}
		}
		pending.Event = warn(volumeMismatch, "Cannot bind to requested volume %q: %s", volume.Name, why)
	case storage.IsVolumeBoundToClaim(volume, c):
		return []Step{{Do: Bind, Volume: volume, Claim: c}}
	default:
		pending.Event = warn(failedBinding, "volume %q already bound to a different claim.", volume.Name)
	}
	return []Step{pending}
}

// boundClaim decides on a claim whose binding was completed before. What is lost
// stays lost: another volume would not hold its data.
func boundClaim(c *corev1.PersistentVolumeClaim, v View) []Step {
	lost := func(reason, message string) []Step {
		if c.Status.Phase == corev1.ClaimLost {
			return nil
		}
		return []Step{{Do: ClaimPhase, Claim: c, Value: string(corev1.ClaimLost), Event: warn(reason, "%s", message)}}
	}
	if c.Spec.VolumeName == "" {
		return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	}
	volume := v.Volume(c.Spec.VolumeName)
	switch {
	case volume == nil:
		return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case volume.Spec.ClaimRef == nil || volume.Spec.ClaimRef.UID == c.UID:
		return []Step{{Do: Bind, Volume: volume, Claim: c}}
	}
	return lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
}

// misfit says why a volume cannot be given to a claim that asks for it by name; "" when it can.
func misfit(volume *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) string {
	size, want := volume.Spec.Capacity[corev1.ResourceStorage], c.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case volume.DeletionTimestamp != nil:
		return fmt.Sprintf("the volume is marked for deletion %q", volume.Name)
	case size.Cmp(want) < 0:
		return "requested PV is too small"
	case storage.GetPersistentVolumeClass(volume) != storage.GetPersistentVolumeClaimClass(c):
		return "storageClassName does not match"
	case ptr.Deref(volume.Spec.VolumeAttributesClassName, "") != ptr.Deref(c.Spec.VolumeAttributesClassName, ""):
		return "volumeAttributesClassName does not match"
	case storage.CheckVolumeModeMismatches(&c.Spec, &volume.Spec):
		return "incompatible volumeMode"
	case !storage.CheckAccessModes(c, volume):
		return "incompatible accessMode"
	}
	return ""
}

// best is the volume that suits a claim best: of those that offer the fewest access
// modes beyond the ones asked for, the smallest.
func best(c *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume, delayed bool) (*corev1.PersistentVolume, error) {
	fit := map[int][]*corev1.PersistentVolume{}
	var counts []int
	for _, v := range volumes {
		if !storage.CheckAccessModes(c, v) {
			continue
		}
		n := len(v.Spec.AccessModes)
		if fit[n] == nil {
			counts = append(counts, n)
		}
		fit[n] = append(fit[n], v)
	}
	slices.Sort(counts)
	for _, n := range counts {
		slices.SortFunc(fit[n], func(a, b *corev1.PersistentVolume) int { return strings.Compare(a.Name, b.Name) })
		if v, err := storage.FindMatchingVolume(c, fit[n], nil, nil, delayed, true); v != nil || err != nil {
			return v, err
		}
	}
	return nil, nil
}

// delayed: the claim's class binds only when a pod that uses the claim is being placed.
func delayed(c *corev1.PersistentVolumeClaim, v View) (bool, error) {
	name := storage.GetPersistentVolumeClaimClass(c)
	if name == "" {
		return false, nil
	}
	class := v.Class(name)
	if class == nil {
		return false, nil
	}
	if class.VolumeBindingMode == nil {
		return false, fmt.Errorf("VolumeBindingMode not set for StorageClass %q", name)
	}
	return *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer, nil
}

// defaultClass is the newest of the classes marked as default; nil where there is none.
func defaultClass(classes []*storagev1.StorageClass) *storagev1.StorageClass {
	marked := slices.DeleteFunc(slices.Clone(classes), func(s *storagev1.StorageClass) bool {
		return s.Annotations["storageclass.kubernetes.io/is-default-class"] != "true" &&
			s.Annotations["storageclass.beta.kubernetes.io/is-default-class"] != "true"
	})
	if len(marked) == 0 {
		return nil
	}
	return slices.MinFunc(marked, func(a, b *storagev1.StorageClass) int {
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
}

// Volume decides what to do about a volume. c is the claim that its claimRef names,
// nil when that is gone or is another one of the same name. users are pods that still use it.
func Volume(pv *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim, users []string) []Step {
	phase := func(p corev1.PersistentVolumePhase, e *Event) []Step {
		if pv.Status.Phase == p {
			return nil
		}
		if e != nil {
			e.OnVolume = true
		}
		return []Step{{Do: VolumePhase, Volume: pv, Value: string(p), Event: e}}
	}
	ref := pv.Spec.ClaimRef
	switch {
	case ref == nil || ref.UID == "": // unused, or kept for a claim that has not come yet
		steps := phase(corev1.VolumeAvailable, nil)
		if c != nil && c.Spec.VolumeName == "" {
			steps = append(steps, Step{Do: ClaimsTurn, Claim: c})
		}
		return steps
	case c == nil:
		return reclaim(pv, users, phase)
	case c.Spec.VolumeName == "":
		if storage.CheckVolumeModeMismatches(&c.Spec, &pv.Spec) {
			onVolume := warn(volumeMismatch, "Cannot bind PersistentVolume to requested PersistentVolumeClaim %q due to incompatible volumeMode.", c.Name)
			onVolume.OnVolume = true
			return []Step{
				{Do: Tell, Volume: pv, Event: onVolume},
				{Do: Tell, Claim: c, Event: warn(volumeMismatch, "Cannot bind PersistentVolume %q to requested PersistentVolumeClaim due to incompatible volumeMode.", pv.Name)},
			}
		}
		return []Step{{Do: ClaimsTurn, Claim: c}} // half a binding: the claim completes it
	case c.Spec.VolumeName == pv.Name:
		return phase(corev1.VolumeBound, nil)
	}
	// The claim was served by another volume.
	if _, made := pv.Annotations[storage.AnnDynamicallyProvisioned]; made && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		return reclaim(pv, users, phase)
	}
	return []Step{{Do: Unbind, Volume: pv}}
}

// reclaim decides on a volume whose claim is gone. A driver's controller deletes its
// own volumes when they are Released; nothing else can be deleted or recycled here.
func reclaim(pv *corev1.PersistentVolume, users []string, phase func(corev1.PersistentVolumePhase, *Event) []Step) []Step {
	var steps []Step
	if pv.Status.Phase != corev1.VolumeFailed {
		if steps = phase(corev1.VolumeReleased, nil); steps != nil {
			return steps // the new phase leads to another look
		}
	}
	if pv.Annotations[storage.AnnMigratedTo] != "" {
		return nil
	}
	switch pv.Spec.PersistentVolumeReclaimPolicy {
	case corev1.PersistentVolumeReclaimRetain:
		return nil
	case corev1.PersistentVolumeReclaimRecycle:
		if len(users) > 0 {
			e := normal(failedRecycle, "Volume is used by pods: %s", strings.Join(users, ","))
			e.OnVolume = true
			return []Step{{Do: Tell, Volume: pv, Event: e}}
		}
		return phase(corev1.VolumeFailed, warn(failedRecycle, "No recycler plugin found for the volume!"))
	case corev1.PersistentVolumeReclaimDelete:
		by, made := pv.Annotations[storage.AnnDynamicallyProvisioned]
		switch {
		case made && by != "" && !strings.HasPrefix(by, "kubernetes.io/"), pv.Spec.CSI != nil:
			return nil
		case made && by != "":
			return phase(corev1.VolumeFailed, warn(failedDelete, "no volume plugin matched name: %s", by))
		}
		return phase(corev1.VolumeFailed, warn(failedDelete, "error getting deleter volume plugin for volume %q: no deletable volume plugin matched", pv.Name))
	}
	return phase(corev1.VolumeFailed, warn("VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy"))
}

// BoundVolume is the volume as it has to be when it is bound to the claim, and whether that is a change.
func BoundVolume(pv *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) (*corev1.PersistentVolume, bool, error) {
	return storage.GetBindVolumeToClaim(pv, c)
}

// UnboundVolume is the volume without its claim. One that a user had meant for the
// claim stays kept for it.
func UnboundVolume(pv *corev1.PersistentVolume) *corev1.PersistentVolume {
	pv = pv.DeepCopy()
	if _, ours := pv.Annotations[storage.AnnBoundByController]; ours {
		pv.Spec.ClaimRef = nil
		delete(pv.Annotations, storage.AnnBoundByController)
	} else {
		pv.Spec.ClaimRef.UID = types.UID("")
	}
	return pv
}

// BoundClaim is the claim as it has to be when it is bound to the volume, and whether that is a change.
func BoundClaim(c *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, bool) {
	_, done := c.Annotations[storage.AnnBindCompleted]
	if done && c.Spec.VolumeName == pv.Name {
		return c, false
	}
	c = c.DeepCopy()
	if c.Spec.VolumeName != pv.Name {
		c.Spec.VolumeName = pv.Name
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, storage.AnnBoundByController, "yes")
	}
	metav1.SetMetaDataAnnotation(&c.ObjectMeta, storage.AnnBindCompleted, "yes")
	return c, true
}

// ClaimStatus is the claim with the status of a phase, and whether that is a change.
// pv is the volume of a bound claim. The capacity of a claim that is bound already is
// left alone: it may be behind the volume's on purpose, while a file system grows.
func ClaimStatus(c *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase, pv *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, bool) {
	out := c.DeepCopy()
	s := &out.Status
	switch {
	case pv == nil:
		s.AccessModes, s.Capacity, s.CurrentVolumeAttributesClassName = nil, nil, nil
	default:
		s.AccessModes = pv.Spec.AccessModes
		if c.Status.Phase != phase {
			s.Capacity = pv.Spec.Capacity
			if text, ok := pv.Annotations[preResize]; ok {
				if q, err := resource.ParseQuantity(text); err == nil {
					s.Capacity = corev1.ResourceList{corev1.ResourceStorage: q}
				}
			}
		}
		if c.Status.Phase == corev1.ClaimPending && phase == corev1.ClaimBound {
			s.CurrentVolumeAttributesClassName = pv.Spec.VolumeAttributesClassName
		}
	}
	s.Phase = phase
	return out, !equality.Semantic.DeepEqual(out.Status, c.Status)
}
