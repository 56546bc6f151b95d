package resources

import "k8s.io/apimachinery/pkg/runtime/schema"

// returned are the kinds whose deletion answers with the object and not with a Status.
// Source: responses of the Kubernetes API reference, operation "delete".
var returned = map[schema.GroupResource]bool{
	{Resource: "pods"}: true, {Resource: "services"}: true, {Resource: "serviceaccounts"}: true, {Resource: "podtemplates"}: true,
	{Resource: "persistentvolumes"}: true, {Resource: "persistentvolumeclaims"}: true, {Resource: "resourcequotas"}: true,
	{Group: "storage.k8s.io", Resource: "storageclasses"}: true, {Group: "storage.k8s.io", Resource: "csidrivers"}: true,
	{Group: "storage.k8s.io", Resource: "csinodes"}: true, {Group: "storage.k8s.io", Resource: "volumeattachments"}: true,
	{Group: "storage.k8s.io", Resource: "volumeattributesclasses"}: true, {Group: "resource.k8s.io", Resource: "deviceclasses"}: true,
	{Group: "resource.k8s.io", Resource: "resourceclaims"}: true, {Group: "resource.k8s.io", Resource: "resourceclaimtemplates"}: true,
	{Group: "resource.k8s.io", Resource: "resourceslices"}: true,
}

// ReturnsDeleted says that deleting an object of the resource answers with the object.
func ReturnsDeleted(gr schema.GroupResource) bool { return returned[gr] }
