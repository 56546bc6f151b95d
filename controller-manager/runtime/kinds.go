package runtime

import (
	"reflect"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/libs/informer"
	"github.com/keelson/keelson/libs/slim"
)

// Names of the indexes that caches carry. Every namespaced kind has ByNamespace;
// kinds that are owned by others have ByController and Orphans; pods have ByNode
// and ByClaim, volumes ByClaim and ByClass, claims ByVolume and ByClass.
const (
	ByNamespace  = "namespace"  // metadata.namespace
	ByController = "controller" // UID of the controlling owner reference
	Orphans      = "orphans"    // namespace, of objects without a controlling owner
	ByNode       = "node"       // spec.nodeName, of pods that have one
	ByClaim      = "claim"      // "namespace/name" of claims: those that a pod uses, the one that a volume is for
	ByVolume     = "volume"     // spec.volumeName of claims; "" holds those that have none
	ByClass      = "class"      // VolumeAttributesClasses that a claim or volume has, or shall get
)

// Kind is one kind that the runtime can cache and write. Name is the resource as
// RBAC and rows write it: "pods", "replicasets.apps".
type Kind struct {
	Name       string
	GVK        schema.GroupVersionKind
	Namespaced bool
	typ        reflect.Type
	open       func(c kubernetes.Interface, k *Kind) *shared
}

// Resource is the kind's plural name without its group.
func (k *Kind) Resource() schema.GroupResource { return schema.ParseGroupResource(k.Name) }

type traits uint8

const (
	cluster traits = 0
	spaced  traits = 1 << iota
	owned
)

// kinds is the table of all kinds known to the controllers.
var kinds = []Kind{
	kind("pods", corev1.SchemeGroupVersion.WithKind("Pod"), spaced|owned,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.PodList](c.CoreV1().Pods(""))
		},
		map[string]func(*corev1.Pod) []string{ByNode: podNode, ByClaim: podClaims}),
	kind[*corev1.Node]("nodes", corev1.SchemeGroupVersion.WithKind("Node"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.NodeList](c.CoreV1().Nodes())
		}, nil),
	kind[*corev1.Namespace]("namespaces", corev1.SchemeGroupVersion.WithKind("Namespace"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.NamespaceList](c.CoreV1().Namespaces())
		}, nil),
	kind[*corev1.Service]("services", corev1.SchemeGroupVersion.WithKind("Service"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.ServiceList](c.CoreV1().Services(""))
		}, nil),
	kind[*corev1.Endpoints]("endpoints", corev1.SchemeGroupVersion.WithKind("Endpoints"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.EndpointsList](c.CoreV1().Endpoints(""))
		}, nil),
	kind[*corev1.ServiceAccount]("serviceaccounts", corev1.SchemeGroupVersion.WithKind("ServiceAccount"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.ServiceAccountList](c.CoreV1().ServiceAccounts(""))
		}, nil),
	kind[*corev1.Secret]("secrets", corev1.SchemeGroupVersion.WithKind("Secret"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.SecretList](c.CoreV1().Secrets(""))
		}, nil),
	kind[*corev1.ConfigMap]("configmaps", corev1.SchemeGroupVersion.WithKind("ConfigMap"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.ConfigMapList](c.CoreV1().ConfigMaps(""))
		}, nil),
	kind[*corev1.PersistentVolumeClaim]("persistentvolumeclaims", corev1.SchemeGroupVersion.WithKind("PersistentVolumeClaim"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.PersistentVolumeClaimList](c.CoreV1().PersistentVolumeClaims(""))
		},
		map[string]func(*corev1.PersistentVolumeClaim) []string{ByVolume: func(c *corev1.PersistentVolumeClaim) []string {
			return []string{c.Spec.VolumeName}
		}, ByClass: ClaimClasses}),
	kind[*corev1.PersistentVolume]("persistentvolumes", corev1.SchemeGroupVersion.WithKind("PersistentVolume"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.PersistentVolumeList](c.CoreV1().PersistentVolumes())
		},
		map[string]func(*corev1.PersistentVolume) []string{ByClaim: func(v *corev1.PersistentVolume) []string {
			if r := v.Spec.ClaimRef; r != nil {
				return []string{r.Namespace + "/" + r.Name}
			}
			return nil
		}, ByClass: VolumeClasses}),
	kind[*corev1.ResourceQuota]("resourcequotas", corev1.SchemeGroupVersion.WithKind("ResourceQuota"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.ResourceQuotaList](c.CoreV1().ResourceQuotas(""))
		}, nil),
	kind[*corev1.ReplicationController]("replicationcontrollers", corev1.SchemeGroupVersion.WithKind("ReplicationController"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*corev1.ReplicationControllerList](c.CoreV1().ReplicationControllers(""))
		}, nil),
	kind[*appsv1.ReplicaSet]("replicasets.apps", appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), spaced|owned,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*appsv1.ReplicaSetList](c.AppsV1().ReplicaSets(""))
		}, nil),
	kind[*appsv1.Deployment]("deployments.apps", appsv1.SchemeGroupVersion.WithKind("Deployment"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*appsv1.DeploymentList](c.AppsV1().Deployments(""))
		}, nil),
	kind[*appsv1.DaemonSet]("daemonsets.apps", appsv1.SchemeGroupVersion.WithKind("DaemonSet"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*appsv1.DaemonSetList](c.AppsV1().DaemonSets(""))
		}, nil),
	kind[*appsv1.StatefulSet]("statefulsets.apps", appsv1.SchemeGroupVersion.WithKind("StatefulSet"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*appsv1.StatefulSetList](c.AppsV1().StatefulSets(""))
		}, nil),
	kind[*appsv1.ControllerRevision]("controllerrevisions.apps", appsv1.SchemeGroupVersion.WithKind("ControllerRevision"), spaced|owned,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*appsv1.ControllerRevisionList](c.AppsV1().ControllerRevisions(""))
		}, nil),
	kind[*batchv1.Job]("jobs.batch", batchv1.SchemeGroupVersion.WithKind("Job"), spaced|owned,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*batchv1.JobList](c.BatchV1().Jobs(""))
		}, nil),
	kind[*batchv1.CronJob]("cronjobs.batch", batchv1.SchemeGroupVersion.WithKind("CronJob"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*batchv1.CronJobList](c.BatchV1().CronJobs(""))
		}, nil),
	kind[*resourcev1.ResourceClaim]("resourceclaims.resource.k8s.io", resourcev1.SchemeGroupVersion.WithKind("ResourceClaim"), spaced|owned,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*resourcev1.ResourceClaimList](c.ResourceV1().ResourceClaims(""))
		}, nil),
	kind[*resourcev1.DeviceClass]("deviceclasses.resource.k8s.io", resourcev1.SchemeGroupVersion.WithKind("DeviceClass"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*resourcev1.DeviceClassList](c.ResourceV1().DeviceClasses())
		}, nil),
	kind[*policyv1.PodDisruptionBudget]("poddisruptionbudgets.policy", policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*policyv1.PodDisruptionBudgetList](c.PolicyV1().PodDisruptionBudgets(""))
		}, nil),
	kind[*discoveryv1.EndpointSlice]("endpointslices.discovery.k8s.io", discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), spaced|owned,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*discoveryv1.EndpointSliceList](c.DiscoveryV1().EndpointSlices(""))
		}, nil),
	kind[*coordinationv1.Lease]("leases.coordination.k8s.io", coordinationv1.SchemeGroupVersion.WithKind("Lease"), spaced,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*coordinationv1.LeaseList](c.CoordinationV1().Leases(""))
		}, nil),
	kind[*certificatesv1.CertificateSigningRequest]("certificatesigningrequests.certificates.k8s.io", certificatesv1.SchemeGroupVersion.WithKind("CertificateSigningRequest"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*certificatesv1.CertificateSigningRequestList](c.CertificatesV1().CertificateSigningRequests())
		}, nil),
	kind[*rbacv1.ClusterRole]("clusterroles.rbac.authorization.k8s.io", rbacv1.SchemeGroupVersion.WithKind("ClusterRole"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*rbacv1.ClusterRoleList](c.RbacV1().ClusterRoles())
		}, nil),
	kind[*storagev1.StorageClass]("storageclasses.storage.k8s.io", storagev1.SchemeGroupVersion.WithKind("StorageClass"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*storagev1.StorageClassList](c.StorageV1().StorageClasses())
		}, nil),
	kind[*storagev1.VolumeAttributesClass]("volumeattributesclasses.storage.k8s.io", storagev1.SchemeGroupVersion.WithKind("VolumeAttributesClass"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*storagev1.VolumeAttributesClassList](c.StorageV1().VolumeAttributesClasses())
		}, nil),
	kind[*storagev1.CSINode]("csinodes.storage.k8s.io", storagev1.SchemeGroupVersion.WithKind("CSINode"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*storagev1.CSINodeList](c.StorageV1().CSINodes())
		}, nil),
	kind[*storagev1.CSIDriver]("csidrivers.storage.k8s.io", storagev1.SchemeGroupVersion.WithKind("CSIDriver"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*storagev1.CSIDriverList](c.StorageV1().CSIDrivers())
		}, nil),
	kind[*storagev1.VolumeAttachment]("volumeattachments.storage.k8s.io", storagev1.SchemeGroupVersion.WithKind("VolumeAttachment"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*storagev1.VolumeAttachmentList](c.StorageV1().VolumeAttachments())
		}, nil),
	kind[*networkingv1.IPAddress]("ipaddresses.networking.k8s.io", networkingv1.SchemeGroupVersion.WithKind("IPAddress"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*networkingv1.IPAddressList](c.NetworkingV1().IPAddresses())
		}, nil),
	kind[*networkingv1.ServiceCIDR]("servicecidrs.networking.k8s.io", networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR"), cluster,
		func(c kubernetes.Interface) informer.Source {
			return informer.From[*networkingv1.ServiceCIDRList](c.NetworkingV1().ServiceCIDRs())
		}, nil),
}

// KindNamed returns the row of the table with this name, or nil.
func KindNamed(name string) *Kind {
	for i := range kinds {
		if kinds[i].Name == name {
			return &kinds[i]
		}
	}
	return nil
}

func kindFor(t reflect.Type) *Kind {
	for i := range kinds {
		if kinds[i].typ == t {
			return &kinds[i]
		}
	}
	return nil
}

func kind[T informer.Object](name string, gvk schema.GroupVersionKind, t traits,
	source func(kubernetes.Interface) informer.Source, more map[string]func(T) []string) Kind {
	return Kind{
		Name: name, GVK: gvk, Namespaced: t&spaced != 0, typ: reflect.TypeFor[T](),
		open: func(c kubernetes.Interface, k *Kind) *shared {
			indexes := map[string]func(T) []string{}
			for n, f := range more {
				indexes[n] = f
			}
			if t&spaced != 0 {
				indexes[ByNamespace] = func(o T) []string { return []string{o.GetNamespace()} }
			}
			if t&owned != 0 {
				indexes[ByController] = func(o T) []string {
					if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
						return []string{string(ref.UID)}
					}
					return nil
				}
				indexes[Orphans] = func(o T) []string {
					if metav1.GetControllerOfNoCopy(o) == nil {
						return []string{o.GetNamespace()}
					}
					return nil
				}
			}
			cache := informer.Of(source(c), informer.Options[T]{Indexes: indexes, Transform: slim.Object[T]})
			s := &shared{kind: k, cache: cache, run: cache.Run, synced: cache.Synced(), rev: cache.Rev, waitFor: cache.WaitFor,
				lookup: func(key objectKey) (metav1.Object, bool) {
					o, ok := cache.Get(key)
					if !ok {
						return nil, false
					}
					return o, true
				},
				count: cache.Len,
				follow: func(f func(metav1.Object, bool)) (stop func()) {
					return cache.Follow(func(ev informer.Event[T]) { f(ev.Last(), ev.Kind == informer.Deleted) })
				},
				each: func(f func(metav1.Object)) {
					for _, o := range cache.List() {
						f(o)
					}
				},
			}
			cache.OnEvent(func(ev informer.Event[T]) {
				switch ev.Kind {
				case informer.Deleted:
					s.graves.gone(ev.Old.GetUID())
				case informer.Updated:
					if ev.New.GetUID() != ev.Old.GetUID() {
						s.graves.gone(ev.Old.GetUID())
					}
					if ev.New.GetDeletionTimestamp() != nil {
						s.graves.gone(ev.New.GetUID())
					}
				}
			})
			return s
		},
	}
}

func podNode(p *corev1.Pod) []string {
	if p.Spec.NodeName == "" {
		return nil
	}
	return []string{p.Spec.NodeName}
}

// PodClaims are the names of the claims that a pod uses, those of its generic
// ephemeral volumes among them.
func PodClaims(p *corev1.Pod) []string {
	var out []string
	for i := range p.Spec.Volumes {
		switch v := &p.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			out = append(out, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			out = append(out, p.Name+"-"+v.Name)
		}
	}
	return out
}

// ClaimClasses are the VolumeAttributesClasses that the claim asks for, has, and is being given.
func ClaimClasses(c *corev1.PersistentVolumeClaim) []string {
	names := []string{ptr.Deref(c.Spec.VolumeAttributesClassName, ""), ptr.Deref(c.Status.CurrentVolumeAttributesClassName, "")}
	if m := c.Status.ModifyVolumeStatus; m != nil {
		names = append(names, m.TargetVolumeAttributesClassName)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool { return n == "" })
}

// VolumeClasses is the VolumeAttributesClass that the volume has, if any.
func VolumeClasses(v *corev1.PersistentVolume) []string {
	if n := ptr.Deref(v.Spec.VolumeAttributesClassName, ""); n != "" {
		return []string{n}
	}
	return nil
}

func podClaims(p *corev1.Pod) []string {
	names := PodClaims(p)
	for i := range names {
		names[i] = p.Namespace + "/" + names[i]
	}
	return names
}
