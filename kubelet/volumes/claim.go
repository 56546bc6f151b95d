package volumes

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// resolveClaim follows a persistentVolumeClaim, or the claim that a generic ephemeral
// volume owns, to its PersistentVolume. Other volumes are left as they are.
//
// The claim is read anew each time: a pod must not run on a volume that is being deleted
// or is bound to somebody else.
func (q *request) resolveClaim(ctx context.Context) error {
	name := ""
	switch {
	case q.volume.PersistentVolumeClaim != nil:
		name = q.volume.PersistentVolumeClaim.ClaimName
		q.readOnly = q.volume.PersistentVolumeClaim.ReadOnly
	case q.volume.Ephemeral != nil:
		name = q.pod.Name + "-" + q.volume.Name
	default:
		return nil
	}
	if q.manager.client == nil {
		return errors.New("there is no API server to ask for the claim")
	}
	claim, err := q.manager.client.CoreV1().PersistentVolumeClaims(q.pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("failed to fetch PVC from API server: %w", err)
	}
	if q.volume.Ephemeral != nil && !metav1.IsControlledBy(claim, q.pod) {
		return fmt.Errorf("PVC %s/%s was not created for pod %s/%s (pod is not owner)", claim.Namespace, claim.Name, q.pod.Namespace, q.pod.Name)
	}
	if claim.DeletionTimestamp != nil {
		return errors.New("PVC is being deleted")
	}
	if claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" {
		return errors.New("PVC is not bound")
	}
	pv, err := q.manager.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("failed to fetch PV %s from API server: %w", claim.Spec.VolumeName, err)
	}
	if pv.Spec.ClaimRef == nil {
		return fmt.Errorf("found PV object %s but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim", pv.Name)
	}
	if pv.Spec.ClaimRef.UID != claim.UID {
		return fmt.Errorf("found PV object %s but its pv.Spec.ClaimRef.UID %s does not point to claim.UID %s", pv.Name, pv.Spec.ClaimRef.UID, claim.UID)
	}
	q.pv, q.name, q.claim = pv, pv.Name, claim.Name
	return nil
}
