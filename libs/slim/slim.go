// Package slim drops from objects what the daemons that decide about them do not read, before their
// caches keep them: a cluster's pods are most of what these daemons have in memory.
//
// What was dropped is missing in a later write of the whole object. Updates of a pod's status are safe (the
// server keeps the stored spec) and so are patches; updates of its spec are not. An update without managed
// fields leaves the stored ones in force.
//
// Source: Kubernetes API concepts, "Server-Side Apply", on managed fields of updates.
package slim

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Object drops managed fields. Of a pod's containers it keeps what decides where they fit, what they take and
// what they offer; ephemeral containers, and how containers are run, are gone. o is changed, and returned.
func Object[T metav1.Object](o T) T {
	o.SetManagedFields(nil)
	if p, ok := any(o).(*corev1.Pod); ok {
		p.Spec.EphemeralContainers = nil
		containers(p.Spec.InitContainers)
		containers(p.Spec.Containers)
	}
	return o
}

func containers(list []corev1.Container) {
	for i := range list {
		c := &list[i]
		list[i] = corev1.Container{Name: c.Name, Image: c.Image, Ports: c.Ports, Resources: c.Resources, ResizePolicy: c.ResizePolicy, RestartPolicy: c.RestartPolicy}
	}
}
