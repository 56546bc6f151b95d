// Package slim makes objects small before the caches of the daemons that decide about them keep them: a
// cluster's pods are most of what these daemons have in memory. It drops what they do not read, and lets pods that
// come from one template share what they have of it.
//
// What was dropped is missing in a later write of the whole object. Updates of a pod's status are safe (the
// server keeps the stored spec) and so are patches that do not name its volumes; updates of its spec are not. An update
// without managed fields leaves the stored ones in force.
//
// Source: Kubernetes API concepts, "Server-Side Apply", on managed fields of updates.
package slim

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RootCA is the name of the ConfigMaps whose data is kept: of the others nobody who decides reads it.
const RootCA = "kube-root-ca.crt"

var (
	metas = newShared[metav1.ObjectMeta]()
	specs = newShared[corev1.PodSpec]()
)

// Object drops managed fields. Of a pod's containers it keeps what decides where they fit, what they take and
// offer, and when they start anew; of its volumes those that are not made on the node; ephemeral containers, and how
// containers are run, are gone. What remains may be shared with other objects, so that nothing in it may ever
// be changed. o itself is changed, and returned.
func Object[T metav1.Object](o T) T {
	o.SetManagedFields(nil)
	switch o := any(o).(type) {
	case *corev1.Pod:
		pod(o)
	case *corev1.ConfigMap:
		if o.Name != RootCA {
			o.Data, o.BinaryData = nil, nil
		}
	}
	return o
}

func pod(p *corev1.Pod) {
	p.Spec.EphemeralContainers = nil
	containers(p.Spec.InitContainers)
	containers(p.Spec.Containers)
	p.Spec.Volumes = slices.DeleteFunc(p.Spec.Volumes, local)
	if len(p.Spec.Volumes) == 0 {
		p.Spec.Volumes = nil
	}

	// What differs between pods of one template is put aside meanwhile.
	s, own := &p.Spec, p.Spec
	s.NodeName, s.Hostname, s.Volumes = "", "", nil
	*s = *specs.of(s)
	s.NodeName, s.Hostname, s.Volumes = own.NodeName, own.Hostname, own.Volumes

	common := metas.of(&metav1.ObjectMeta{Namespace: p.Namespace, GenerateName: p.GenerateName, Labels: p.Labels,
		Annotations: p.Annotations, OwnerReferences: p.OwnerReferences, Finalizers: p.Finalizers})
	p.Namespace, p.GenerateName, p.Labels = common.Namespace, common.GenerateName, common.Labels
	p.Annotations, p.OwnerReferences, p.Finalizers = common.Annotations, common.OwnerReferences, common.Finalizers
}

func containers(list []corev1.Container) {
	for i := range list {
		c := &list[i]
		list[i] = corev1.Container{Name: c.Name, Image: c.Image, Ports: c.Ports, Resources: c.Resources, ResizePolicy: c.ResizePolicy,
			RestartPolicy: c.RestartPolicy, RestartPolicyRules: c.RestartPolicyRules}
	}
}

// local: the kubelet makes the volume by itself.
func local(v corev1.Volume) bool {
	return v.Projected != nil || v.EmptyDir != nil || v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.HostPath != nil
}
